"""The tensors of a narrow ResNet-18 under torchvision's names, drawn at random."""

import numpy as np

WIDTH = 8


def resnet18_tensors(seed=0):
    """Kernels out × in × rows × columns and batch norms, float32, by name."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def conv(name, outputs, inputs, side):
        tensors[f"{name}.weight"] = rng.standard_normal((outputs, inputs, side, side))

    def norm(name, channels):
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels)
        tensors[f"{name}.bias"] = rng.standard_normal(channels)
        tensors[f"{name}.running_mean"] = rng.standard_normal(channels)
        tensors[f"{name}.running_var"] = rng.uniform(0.5, 1.5, channels)
        tensors[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", WIDTH, 3, 7)
    norm("bn1", WIDTH)
    inputs = WIDTH
    for stage in range(4):
        width = WIDTH * 2**stage
        for block in range(2):
            prefix = f"layer{stage + 1}.{block}"
            conv(f"{prefix}.conv1", width, inputs, 3)
            norm(f"{prefix}.bn1", width)
            conv(f"{prefix}.conv2", width, width, 3)
            norm(f"{prefix}.bn2", width)
            if inputs != width:
                conv(f"{prefix}.downsample.0", width, inputs, 1)
                norm(f"{prefix}.downsample.1", width)
            inputs = width
    tensors["fc.weight"] = rng.standard_normal((10, inputs))
    tensors["fc.bias"] = rng.standard_normal(10)
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def fold_batch_norms(tensors, epsilon=1e-5):
    """The same network with each batch norm folded into the convolution before it."""
    folded = {}
    for name, kernel in tensors.items():
        if kernel.ndim != 4:
            continue
        conv = name.removesuffix(".weight")
        norm = conv.replace("conv", "bn") if "conv" in conv else conv[:-1] + "1"
        scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + epsilon)
        folded[name] = kernel * scale[:, None, None, None]
        mean = tensors[f"{norm}.running_mean"]
        folded[f"{conv}.bias"] = tensors[f"{norm}.bias"] - mean * scale
    return folded
