"""Reading an Accept header: a person's client or a Prometheus scraper?"""

from __future__ import annotations

from typing import Final

_JSON: Final = "application/json"


def wants_metrics(accept: str) -> bool:
    """True if the exposition formats are asked for by name, and more than JSON is.

    Wildcards do not count: browsers, curl and load balancers send them and want the documented JSON.
    """
    wanted = {"metrics": 0.0, "json": 0.0}
    for choice in accept.lower().split(","):
        media, *params = (part.strip() for part in choice.split(";"))
        if media == "application/openmetrics-text" or (media == "text/plain" and "version=0.0.4" in params):
            wanted["metrics"] = max(wanted["metrics"], _quality(params))
        elif media == _JSON:
            wanted["json"] = max(wanted["json"], _quality(params))
    return wanted["metrics"] > wanted["json"]


def _quality(params: list[str]) -> float:
    for param in params:
        if param.startswith("q="):
            try:
                return float(param[2:])
            except ValueError:
                return 0.0
    return 1.0
