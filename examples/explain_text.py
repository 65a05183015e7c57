"""Which words of a text made it like an image: the text side of a pair of encoders, by `pycam.vjp` and numpy.

python examples/explain_text.py TEXT_ENCODER.onnx TOKENS EMBEDDING.npy [--words NAMES.txt]

TOKENS: numbers such as 1,3,9,2 (one text, padded as the encoder takes it); EMBEDDING.npy: the image's, (D,), as the
image encoder gives it.  Class activation maps are for images; the words get gradient × input at their embeddings E:
the similarity `y = cos(e, image)` changes by about `Σ_d E_td·dy/dE_td` where word t is taken away.
The image side needs no recipe: `pycam.Explainer(IMAGE_ENCODER, target=pycam.targets.Similarity())(x, reference=text)`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import pycam


def embedded(model: onnx.ModelProto) -> str:
    """The words' embeddings (N, T, D): what the first Gather with an input of the model takes out of a table."""
    inputs = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] in inputs:
            return str(node.output[0])
    raise ValueError("no Gather reads an input of the model: name the value that holds the words' embeddings")


class TextExplainer:
    """Explains texts (N, T) by images' embeddings.

    Args:
        model: Path of the text encoder; its first input takes tokens, its first output is the embedding (N, D).
        at: The value that holds the words' embeddings (N, T, E); None: see `embedded`.
    """

    def __init__(self, model: str | Path, at: str | None = None) -> None:
        source = onnx.load(model)
        self.at = embedded(source) if at is None else at
        self.output, self.input = source.graph.output[0].name, source.graph.input[0].name
        graph = pycam.vjp(model, wrt=[self.at], output=self.output)
        graph.graph.output.append(onnx.ValueInfoProto(name=self.at))
        self.session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def __call__(self, tokens: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
        """(similarity (N,), relevance of each word (N, T)) for references (D,) or (N, D)."""
        feeds = {self.input: np.asarray(tokens, np.int64)}
        (e,) = self._run([self.output], feeds, np.zeros((len(feeds[self.input]), np.shape(reference)[-1])))
        r = np.broadcast_to(np.asarray(reference, np.float32), e.shape)
        lengths = np.linalg.norm(e, axis=1, keepdims=True), np.linalg.norm(r, axis=1, keepdims=True)
        y = (e * r).sum(1, keepdims=True) / (lengths[0] * lengths[1])
        slope = r / (lengths[0] * lengths[1]) - y * e / lengths[0] ** 2  # dy/de
        words, gradient = self._run([self.at, f"{self.at}.gradient"], feeds, slope)
        return y[:, 0], (words * gradient).sum(2)

    def _run(self, names: list[str], feeds: dict[str, np.ndarray], cotangent: np.ndarray) -> list[np.ndarray]:
        given = {**feeds, f"{self.output}.cotangent": cotangent.astype(np.float32)}
        return [np.asarray(array) for array in self.session.run(names, given)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=lambda text: [int(t) for t in text.split(",")])
    parser.add_argument("embedding", type=Path)
    parser.add_argument("--words", type=Path, help="a name per line")
    options = parser.parse_args()
    names = options.words.read_text(encoding="utf-8").split("\n") if options.words else []
    similarity, relevance = TextExplainer(options.model)([options.tokens], np.load(options.embedding))
    print(f"similarity {similarity[0]:.3f}")
    for token, share in zip(options.tokens, relevance[0], strict=True):
        print(f"  {share:+.3f}  {names[token] if token < len(names) else token}")


if __name__ == "__main__":
    main()
