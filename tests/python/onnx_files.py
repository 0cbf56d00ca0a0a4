"""The ONNX files of a folder, read by onnx and run by onnxruntime."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

FILES = {"fp32": "model.onnx", "q8": "model_quantized.onnx", "q4": "model_q4.onnx"}
BLOCK = 32


def path_of(folder, variant):
    return Path(folder) / "onnx" / FILES[variant]


def open_graph(path, change=None):
    """A session on the file at `path`; with `change` on a changed copy of its graph, whose weights are the same."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if change is None:
        return Session(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    # Weights are looked for beside the graph.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as copy:
        copy.write(model.SerializeToString())
        copy.flush()
        return Session(onnxruntime.InferenceSession(copy.name, options, providers=["CPUExecutionProvider"]))


def constant(graph, name):
    [found] = [tensor for tensor in graph.initializer if tensor.name == name]
    return found


def of_all_tokens(graph):
    """Has the graph give the logits of all tokens of one row, not of the last alone."""
    constant(graph, "last.start").CopyFrom(numpy_helper.from_array(np.array([0], np.int64), "last.start"))
    if any(tensor.name == "head.shape" for tensor in graph.initializer):
        vocab = numpy_helper.to_array(constant(graph, "head.shape"))[-1]
        shape = numpy_helper.from_array(np.array([1, -1, vocab], np.int64), "head.shape")
        constant(graph, "head.shape").CopyFrom(shape)


class Session:
    def __init__(self, session):
        self.session = session
        self.caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values")]

    def empty(self, rows=1):
        return [np.zeros((rows, value.shape[1], 0, value.shape[3]), np.float32) for value in self.caches]

    def run(self, ids, mask=None, past=None):
        """Logits, and the cache with these tokens in it."""
        ids = np.asarray(ids, np.int64)
        past = past or self.empty(len(ids))
        if mask is None:
            mask = np.ones((len(ids), past[0].shape[2] + ids.shape[1]), np.int64)
        feed = dict(zip([value.name for value in self.caches], past))
        logits, *present = self.session.run(None, {"input_ids": ids, "attention_mask": mask, **feed})
        return logits, present

    def greedy(self, prompt, stop, longest):
        """The likeliest tokens after `prompt`, and the stop token that ends them."""
        answer, past, unread = [], None, list(prompt)
        while len(answer) < longest:
            logits, past = self.run([unread], past=past)
            unread = [int(logits[0, -1].argmax())]
            answer += unread
            if unread[0] in stop:
                break
        return answer


def tensors(path):
    """All tensors of a file, by name."""
    model = onnx.load(path)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def unpacked(found, name):
    """The matrix `name` of a file in blocks, as MatMulNBits is documented to read it: `(q - zero) * scale`."""
    packed, scales = found[f"{name}.q"], found[f"{name}.scales"]
    rows, blocks, width = packed.shape
    if f"{name}.zeros" in found:
        def nibbles(values):
            return np.stack([values & 15, values >> 4], -1).reshape(rows, -1)

        whole = nibbles(packed).reshape(rows, blocks, BLOCK)
        zeros = nibbles(found[f"{name}.zeros"])[:, :blocks]
    else:
        assert width == BLOCK
        whole, zeros = packed, np.full((rows, blocks), 128)
    steps = whole.astype(np.float32) - zeros[..., None].astype(np.float32)
    return (steps * scales[..., None]).reshape(rows, blocks * BLOCK), scales
