"""What reading and writing of `config.json` share: the families of files, and values that the model computes with.

Knows nothing about files, tensors or torch.
"""

from typing import Any, Literal, get_args

LayoutName = Literal["pt", "native", "paddle"]
LAYOUT_NAMES: tuple[LayoutName, ...] = get_args(LayoutName)

Json = dict[str, Any]

# The vocabulary of the releases holds a second placeholder, for videos, that only transformers' native class uses.
NATIVE_VIDEO_TOKEN = 103367

FLAT_VL, NATIVE_VL, MOE, DENSE = "ernie4_5_moe_vl", "ernie4_5_vl_moe", "ernie4_5_moe", "ernie4_5"
MODEL_TYPES = (FLAT_VL, NATIVE_VL, MOE, DENSE)
ARCHITECTURES = {
    FLAT_VL: "Ernie4_5_VLMoeForConditionalGeneration",
    NATIVE_VL: "Ernie4_5_VLMoeForConditionalGeneration",
    MOE: "Ernie4_5_MoeForCausalLM",
    DENSE: "Ernie4_5ForCausalLM",
}
# What readers of flat files take whatever the file says.
VISION_NORM_EPS, VISION_ROPE_THETA, NORM_MIN = 1e-6, 10000.0, 1e-12
