"""Serve a compressed model over HTTP, on this machine alone: POST an image, get its most likely class. Ctrl-C ends it.

python examples/serve.py &
curl --data-binary @photo.jpg http://127.0.0.1:8000
"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from PIL import Image

import stm

small = stm.compress(stm.load("vim-digits"), rate=0.4)  # or stm.load("a folder that stm compress wrote")
served = small.optimize(batch_size=1)  # a request brings one image, so the calls are laid out for one


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        try:
            images = small.preprocess(Image.open(io.BytesIO(body)))  # (1, C, H, W)
        except Exception as error:  # Pillow's decoders raise errors of many kinds at a broken file
            self.send_error(400, f"not an image that can be read: {error}")
            return
        probability, index = served(images)[0].softmax(-1).max(-1)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"class": index.item(), "probability": probability.item()}).encode() + b"\n")


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Handler)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
