"""English words with opposites, so that a question can ask for what its text does not say."""

from __future__ import annotations

_PAIRS = """
above below | accept reject | accepted rejected | active inactive | added removed | after before
agree disagree | agreed disagreed | allow forbid | allowed forbidden | always never | ancient modern
appear disappear | approve reject | approved rejected | arrive leave | arrived left | attack defend
attacked defended | attacker defender | beautiful ugly | began ended | begin end | beginning end
best worst | better worse | big small | bigger smaller | biggest smallest | birth death | born buried
bottom top | bought sold | build destroy | built destroyed | buy sell | cause prevent | caused prevented
cheap expensive | close open | closed opened | closest farthest | cold hot | common rare | complex simple
connect separate | create destroy | created destroyed | day night | decline growth | declined grew
decrease increase | decreased increased | decreases increases | deep shallow | defeat victory
denied admitted | deny admit | die live | died lived | different same | difficult easy | direct indirect
earlier later | earliest latest | early late | east west | eastern western | easy hard | emperor empress
empty full | enemy ally | entered left | export import | exported imported | exports imports
external internal | fail succeed | failed succeeded | fall rise | false true | famous unknown | far near
fast slow | faster slower | fastest slowest | father mother | fell rose | female male | few many
fewer more | fewest most | final initial | first last | formal informal | former future | found lost
friend enemy | front back | gain lose | gained lost | gave took | give take | good bad | greater lesser
greatest least | happy sad | heavy light | high low | higher lower | highest lowest | human animal
husband wife | include exclude | included excluded | includes excludes | independent dependent | inner outer
inside outside | join leave | joined left | king queen | large small | larger smaller | largest smallest
least most | left right | legal illegal | less more | liked disliked | local foreign | long short
longer shorter | longest shortest | lose win | loss profit | lost won | love hate | loved hated
lower upper | major minor | majority minority | man woman | maximum minimum | men women | negative positive
new old | newest oldest | north south | northern southern | official unofficial | older younger
oldest youngest | past future | peace war | permanent temporary | permit prohibit | permitted prohibited
physical mental | poor rich | popular unpopular | possible impossible | prince princess | private public
protect harm | public secret | raise lower | raised lowered | receive send | received sent
related unrelated | religious secular | remember forget | rural urban | safe dangerous | slave master
smart stupid | son daughter | sons daughters | start finish | started stopped | strengthen weaken
strong weak | stronger weaker | strongest weakest | successful unsuccessful | sunrise sunset
support oppose | supported opposed | supporters opponents | supports opposes | thick thin | unified divided
useful useless | usually rarely | visible invisible | wealthy poor | white black | wide narrow
with without | within beyond
"""


def _opposites() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in _PAIRS.strip().split("\n"):
        for pair in line.split("|"):
            one, other = pair.split()
            found[one] = (*found.get(one, ()), other)
            found[other] = (*found.get(other, ()), one)
    return found


OPPOSITES = _opposites()
"""Each word in lower case, and its opposites."""
