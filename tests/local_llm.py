"""A causal language model of transformers behind an OpenAI-compatible server on loopback: chat, whole and streamed."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from csrm_guard.testing import Reply
from csrm_guard.testing_bodies import chat_completion

_TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"


class LocalLLM:
    """Serves the model of a folder. Use it in a `with` block.

    Attributes:
        tokens: that were generated for each stream.
    """

    def __init__(self, folder: Path) -> None:
        if (folder / "tokenizer_config.json").exists():
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        else:
            self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
            self._tokenizer.chat_template = _TEMPLATE
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._lock = threading.Lock()
        self.tokens: list[int] = []
        llm = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                kind = "text/event-stream" if body.get("stream") else "application/json"
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                if not body.get("stream"):
                    self.wfile.write(json.dumps(chat_completion(body, Reply(llm.answers(body)))).encode())
                    return
                for piece in llm.pieces(body):
                    try:
                        self.wfile.write(f"data: {json.dumps(_chunk(body, piece))}\n\n".encode())
                    except (BrokenPipeError, ConnectionResetError):
                        return  # the generator is closed with it, which ends the generation
                self.wfile.write(f"data: {json.dumps(_chunk(body, None))}\n\ndata: [DONE]\n\n".encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "LocalLLM":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        """Return when nothing is being generated."""
        with self._lock:
            pass

    def answers(self, body: dict[str, Any]) -> tuple[str, ...]:
        ids, options = self._asked(body)
        with self._lock:
            found = self._model.generate(**ids, **options, num_return_sequences=body.get("n") or 1)
        return tuple(self._tokenizer.batch_decode(found[:, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    def pieces(self, body: dict[str, Any]) -> Iterator[str]:
        """Yield what is generated as it is; closing this ends the generation."""
        ids, options = self._asked(body)
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        left = threading.Event()
        self.tokens.append(0)
        place = len(self.tokens) - 1

        def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            self.tokens[place] += 1
            return torch.full((ids.shape[0],), left.is_set())

        def work() -> None:
            with self._lock:
                self._model.generate(
                    **ids, **options, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop])
                )

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            left.set()
            thread.join()

    def _asked(self, body: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = self._tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        warm = body.get("temperature", 0) or 0
        torch.manual_seed(body.get("seed") or 0)
        options = {"max_new_tokens": body.get("max_tokens", 64), "do_sample": warm > 0}
        return ids, {
            **options,
            "pad_token_id": self._model.config.eos_token_id,
            **({"temperature": warm} if warm else {}),
        }


def _chunk(body: dict[str, Any], piece: str | None) -> dict[str, Any]:
    delta = {} if piece is None else {"role": "assistant", "content": piece}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if piece is None else None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    return {**head, "choices": [choice]}
