"""The PyTorch module that `export` writes, as text; `test_torch.py` runs it where torch is."""

import ast
import dataclasses

import numpy as np
import pytest
from safetensors import safe_open

from alexnet_jax.cli.main import main
from alexnet_jax.errors import UsageError
from alexnet_jax.model.activation import Activation
from alexnet_jax.model.operation import Operation
from alexnet_jax.model.tower import build_tower, initial_statistics
from alexnet_jax.registry import ACTIVATIONS, OPERATIONS
from alexnet_jax.weights.column import from_towers
from alexnet_jax.weights.files import read, write
from alexnet_jax.weights.torch_module import to_source
from tests.weights.test_weights import CONFIGS, changed, lively, network

NETWORKS = CONFIGS | {
    "batch norm": {
        "model__layers__conv1__then": ("batch_norm", "activation", "max_pool"),
        "model__layers__fc6__then": ("activation", "batch_norm", "dropout"),
    },
    "even windows of channels": {"model__lrn__size": 4, "model__lrn__alpha": 0.1},
    "resized bilinearly": {
        "data__shrink": "bilinear", "data__resize": "stretch", "data__image_size": 40,
        "model__layers__conv1__padding": (1, 2),
    },
    "resized with triangles": {"data__shrink": "triangle", "data__image_size": 43},
    "a pool larger than the map": {"model__pool__window": 9, "model__dropout__rate": 0.0},
    "a mean image": {"data__mean": "image"},
}  # fmt: skip


def column_of(name):
    """A column of random weights, with running statistics where it has any."""
    config = changed(**NETWORKS[name])
    rng = np.random.default_rng(2)
    crop = config.data.crop_size
    mean = np.float32(config.data.channel_mean)
    if config.data.mean == "image":
        mean = rng.uniform(50, 200, (crop, crop, 3)).astype(np.float32)
    variables = {"params": lively(config)}
    if running := initial_statistics(build_tower(config.model), crop):
        variables["batch_stats"] = {
            layer: {
                part: rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
                for part, value in leaves.items()
            }
            for layer, leaves in running.items()
        }
    return from_towers(config, variables, mean, tuple(f"class {i}" for i in range(10)))


class Parsed:
    """What a module declares, read from its syntax."""

    def __init__(self, source):
        tree = ast.parse(source)
        self.imports = {
            name.name.partition(".")[0] if isinstance(node, ast.Import) else node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        methods = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        (net,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "AlexNet")
        start, self.forward = (n for n in net.body if isinstance(n, ast.FunctionDef))
        self.layers, self.arrays = {}, {}
        assert "preprocess" in methods and "load" in methods and "classes" in methods
        for statement in start.body[1:]:
            (target,), call = statement.targets, statement.value
            name = ast.unparse(target).removeprefix("self.")
            given = [ast.literal_eval(a) for a in call.args]
            named = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            kind = ast.unparse(call.func)
            if kind == "Values":
                trained, running, shape = (*given, (), ())[:3] if given else ((), (), ())
                trained, running = named.get("trained", trained), named.get("running", running)
                shape = named.get("shape", shape)
                self.arrays |= {f"{name}.{part}": shape for part in (*trained, *running)}
                continue
            inputs, outputs, *kernel = given
            self.layers[name] = (kind, inputs, outputs, *kernel, named)
            size = (inputs // named.get("groups", 1), *kernel, *kernel)
            self.arrays |= {f"{name}.weight": (outputs, *size), f"{name}.bias": (outputs,)}

    def calls(self):
        """The functions that `forward` calls, in order."""
        found = [n for n in ast.walk(self.forward) if isinstance(n, ast.Call)]
        found.sort(key=lambda node: (node.lineno, -node.col_offset))
        return [ast.unparse(node.func) for node in found]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_module_declares_the_arrays_of_the_file_beside_it(name, tmp_path):
    found = column_of(name)
    write(found, tmp_path / "net.py")
    source = (tmp_path / "net.py").read_text()
    parsed = Parsed(source)
    with safe_open(tmp_path / "net.safetensors", "numpy") as file:
        stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert parsed.arrays == stored
    assert parsed.imports == {"json", "pathlib", "torch", "safetensors", "safetensors.torch"}
    # The weights are an ordinary file of this project too.
    again = read(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(again.arrays["fc8.weight"], found.arrays["fc8.weight"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_module_has_the_layers_of_the_configuration(name):
    found = column_of(name)
    model, parsed = found.config.model, Parsed(to_source(found, "net.safetensors"))
    assert list(parsed.layers) == list(model.layer_order)
    calls = parsed.calls()
    names = {
        "activation": {"relu": "F.relu", "tanh": "torch.tanh", "sigmoid": "torch.sigmoid"}[
            model.activation
        ],
        "max_pool": "F.max_pool2d", "avg_pool": "F.avg_pool2d", "batch_norm": "F.batch_norm",
        "lrn": "F.local_response_norm" if model.lrn.enabled else "",
        "within_map_norm": "F.avg_pool2d",
        "dropout": "F.dropout" if model.dropout.rate else "",
    }  # fmt: skip
    for number, (layer, (kind, _, outputs, *kernel, named)) in enumerate(parsed.layers.items()):
        row = model.layers[layer]
        is_last = layer == model.layer_order[-1]
        width = 1 if is_last else model.width
        assert outputs == row.features * width and kind == {
            "conv": "nn.Conv2d", "dense": "nn.Linear"
        }[row.kind]  # fmt: skip
        if row.kind == "conv":
            before, after = row.padding
            assert kernel == [row.kernel] and named["stride"] == row.stride
            assert named["padding"] == (before if before == after else 0)
            alone = row.exchange == "none" and number > 0
            assert named["groups"] == (model.towers if alone else 1)
        here = calls[calls.index(f"self.{layer}") + 1 :]
        here = here[: next((i for i, c in enumerate(here) if c.startswith("self.")), len(here))]
        wanted = [names[op] for op in row.then if names[op]]
        assert [call for call in here if call in wanted] == wanted


@pytest.fixture
def guests():
    """An operation and an activation of which PyTorch knows nothing."""

    @dataclasses.dataclass(frozen=True)
    class Twice(Operation):
        def __call__(self, x, at):
            return 2 * x

    OPERATIONS["twice"], ACTIVATIONS["cube"] = Twice, Activation(lambda x: x**3)
    yield
    del OPERATIONS["twice"], ACTIVATIONS["cube"]


@pytest.mark.parametrize(
    "changes,says",
    [
        ({"model__layers__conv1__then": ("twice",)},
         "twice after conv1 cannot be exported to PyTorch: Twice has no method torch"),
        ({"model__activation": "cube"}, "activation after conv1 .* give its Activation"),
    ],
)  # fmt: skip
def test_an_operation_that_cannot_be_exported_is_named(guests, changes, says, tmp_path):
    _, found = network(changed(**changes))
    with pytest.raises(UsageError, match=says):
        write(found, tmp_path / "net.py")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["conv-1", "lambda", "input"])
def test_a_layer_that_python_cannot_name_is_named(name):
    config = changed()
    with config.unlocked():
        config.model.layers[name] = config.model.layers.conv1
        config.model.layer_order = (name, *config.model.layer_order[1:])
    with pytest.raises(UsageError, match=f"{name!r} cannot be the name of a part"):
        to_source(network(config)[1], "net.safetensors")


def test_the_command_writes_both_files(tmp_path, capsys, monkeypatch):
    from alexnet_jax.cli import main as command_line

    monkeypatch.setattr(command_line, "_start", lambda config: None)
    _, found = network(changed())
    write(found, tmp_path / "in.safetensors")
    out = tmp_path / "alexnet.py"
    assert main(["export", f"--weights={tmp_path / 'in.safetensors'}", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"wrote {out} and {tmp_path / 'alexnet.safetensors'}\n"
    assert "alexnet.safetensors" in out.read_text()
    assert main(["predict", f"--weights={out}", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
