"""The page without a server: it reads in the browser, with ONNX Runtime for the web."""

from tinyqa_ray.serve.browser.build import BrowserPage, build

__all__ = ["BrowserPage", "build"]
