"""``python -m tinyqa_ray`` is ``tinyqa``."""

from tinyqa_ray.cli.main import main

if __name__ == "__main__":
    main()
