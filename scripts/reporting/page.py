"""The page as one file: data, style and scripts inside, so that it works offline and can be sent to somebody.

Nothing that comes from a run can be taken for markup: the data stand in a JSON block without a single `<`, page.js
makes text of them alone, and the page's policy lets no script run but the two that are named in it by their hashes.
"""

import base64
import functools
import hashlib
import html
import json
from pathlib import Path

from hesscale_rl.errors import InputError
from hesscale_rl.scripts.reporting.figures import Json

HERE = Path(__file__).parent


def as_json(data: Json) -> str:
    """Return data as JSON that is safe inside of a page: no tag, comment or entity can begin in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def scripts() -> tuple[str, str]:
    """Return Plotly's script and the page's own; InputError without Plotly."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("a report needs Plotly and scipy, pip install 'hesscale-rl[report]'") from None
    return get_plotlyjs(), (HERE / "page.js").read_text()


@functools.cache
def policy(live: bool) -> str:
    """Return the page's policy: which scripts may run, and that nothing is fetched but, if `live`, new data."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts()]
    named = " ".join(f"'sha256-{digest}'" for digest in hashes)
    parts = {"default-src": "'none'", "script-src": named, "style-src": "'unsafe-inline'", "img-src": "data: blob:"}
    parts |= {"connect-src": "'self'" if live else "'none'", "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def page(data: Json, live: bool = False) -> str:
    """Return the page; `live`: it asks its server for new data from time to time."""
    plotly, own = scripts()
    title = html.escape(f"{data['title']}, hesscale-rl report")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy(live))}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{(HERE / "page.css").read_text()}</style>
</head>
<body{' data-live="1"' if live else ""}>
<header><noscript>This page draws itself with JavaScript, which is switched off.</noscript></header>
<main><div id="figures"></div><div id="table"></div></main>
<footer><p>A click on a point or a line shows the curves of its runs, one on a name in a legend hides its lines.
A diverged run counts, from its end on, with the worst of its curve.</p></footer>
<div id="told"></div>
<script type="application/json" id="data">{as_json(data)}</script>
<script>{plotly}</script>
<script>{own}</script>
</body>
</html>
"""
