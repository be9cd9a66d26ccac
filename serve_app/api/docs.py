"""The page at `/docs`: Swagger UI, with its files from a package that is installed.

Its addresses are relative, so it works below any route prefix.
"""

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>jina-clip-serve</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/files/swagger-ui.css">
<div id="docs"></div>
<script src="docs/files/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  validatorUrl: null,  // would send the document to another host
  defaultModelsExpandDepth: 0,
});
"""
# Nothing but this server, no inline script and no inline style; Swagger UI's icons are data: URIs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes() -> list[BaseRoute]:
    """Return the routes of the page and its files."""
    files = StaticFiles(packages=[("fastapi_offline", "static")])
    return [
        Route("/docs", page),
        Route("/docs/", without_slash),
        Route("/docs/start.js", start),
        Mount("/docs/files", files),
    ]


async def page(_request: Request) -> Response:
    """Answer `GET /docs`."""
    return HTMLResponse(PAGE, headers={"content-security-policy": POLICY})


async def without_slash(_request: Request) -> Response:
    """Answer `GET /docs/`: the page's addresses hold without the slash only."""
    return RedirectResponse("../docs")


async def start(_request: Request) -> Response:
    """Answer `GET /docs/start.js`: the script that fills the page."""
    return Response(START, media_type="text/javascript")
