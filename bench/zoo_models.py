"""The models of `bench/zoo.py`: which there are, and how one is built so that all of it matters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn

SEED = 20261


@dataclass(frozen=True)
class Entry:
    """One model: where it comes from and what it is fed."""

    name: str  # "torchvision/resnet18", "timm/cait_xxs24_224"
    family: str  # the module that defines it
    shapes: tuple[tuple[int, ...], ...]  # of one input, without the batch: the first one that the model takes is used
    options: tuple[tuple[str, Any], ...] = ()


def _flat(size: int) -> tuple[int, ...]:
    return (3, size, size)


SMALL, USUAL = _flat(128), _flat(224)

POPULAR = """
    torchvision/resnet18 torchvision/mobilenet_v2 torchvision/mobilenet_v3_small torchvision/efficientnet_b0
    torchvision/squeezenet1_1 torchvision/shufflenet_v2_x0_5 torchvision/densenet121 torchvision/mnasnet0_5
    torchvision/googlenet torchvision/regnet_y_400mf torchvision/regnet_x_400mf torchvision/convnext_tiny
    torchvision/swin_t torchvision/swin_v2_t torchvision/alexnet torchvision/resnet50 torchvision/inception_v3
    torchvision/lraspp_mobilenet_v3_large torchvision/deeplabv3_mobilenet_v3_large torchvision/fcn_resnet50
    torchvision/vit_b_32 torchvision/maxvit_t torchvision/r3d_18 torchvision/r2plus1d_18 torchvision/mvit_v2_s
    torchvision/swin3d_t torchvision/vgg11_bn
"""
"""These come first."""

TORCHVISION_SKIPPED = {
    "regnet_y_128gf": "645 million weights; its siblings have the same graph",
    "vit_h_14": "632 million weights; its siblings have the same graph",
    "vit_l_16": "304 million weights; its siblings have the same graph",
    "vit_l_32": "306 million weights; its siblings have the same graph",
}

_CLIP = (3, 8, 64, 64)
_NO_AUX = (("aux_logits", False), ("init_weights", True))
_SEGMENT = (("weights_backbone", None),)
TORCHVISION_INPUTS: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[tuple[str, Any], ...]]] = {
    "alexnet": ((USUAL,), ()),
    "inception_v3": ((_flat(160),), _NO_AUX),
    "googlenet": ((SMALL,), _NO_AUX),
    "maxvit_t": ((USUAL,), (("input_size", (224, 224)),)),
    "vit_b_16": ((_flat(96),), (("image_size", 96),)),
    "vit_b_32": ((USUAL,), ()),
    "swin_t": ((USUAL,), ()),
    "swin_v2_t": ((_flat(256),), ()),
    "s3d": (((3, 16, 224, 224),), ()),
    "mvit_v1_b": (((3, 16, 224, 224),), ()),
    "mvit_v2_s": (((3, 16, 224, 224),), ()),
}

TIMM: dict[str, str] = {
    "beit": "beit_base_patch16_224 beitv2_base_patch16_224",
    "byoanet": "halonet_h1 eca_botnext26ts_256 lambda_resnet26t lambda_resnet26rpt_256 sehalonet33ts sebotnet33ts_256 "
    "lamhalobotnet50ts_256 haloregnetz_b",
    "byobnet": "test_byobnet mobileone_s0 gernet_s repvgg_a0 regnetz_b16 regnetz_b16_evos gcresnext26ts "
    "bat_resnext26ts eca_resnext26ts resnet50_clip resnet51q",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny coat_lite_tiny",
    "convit": "convit_tiny convit_small",
    "convmixer": "convmixer_768_32 convmixer_1024_20_ks9_p14",
    "convnext": "test_convnext convnext_atto convnextv2_atto convnext_zepto_rms convnext_atto_ols",
    "cpubone": "cpubone_nano cpubone_t0",
    "crossvit": "crossvit_tiny_240 crossvit_9_dagger_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s cs3darknet_s darknet17 sedarknet21 cspresnext50 cs3sedarknet_xdw darknetaa53",
    "cspnext": "cspnext_tiny cspnext_s",
    "davit": "davit_tiny",
    "deepseek_vit": "",
    "deit": "deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla46x_c dla46_c dla34",
    "dpn": "dpn48b dpn68",
    "edgenext": "edgenext_xx_small edgenext_x_small",
    "efficientformer": "efficientformer_l1 efficientformer_l3",
    "efficientformer_v2": "efficientformerv2_s0 efficientformerv2_s1",
    "efficientnet": "test_efficientnet test_efficientnet_gn test_efficientnet_ln test_efficientnet_evos "
    "efficientnet_b0 mobilenetv1_100 mobilenetv2_035 mnasnet_small semnasnet_050 tinynet_e mixnet_s tf_mixnet_s "
    "spnasnet_100 fbnetc_100 efficientnet_lite0 tf_efficientnet_lite0 tf_efficientnet_b0 efficientnet_es "
    "mobilenet_edgetpu_100 efficientnet_blur_b0 efficientnetv2_rw_t tf_efficientnetv2_b0 efficientnet_cc_b0_4e "
    "efficientnet_x_b3",
    "efficientvim": "efficientvim_m1 efficientvim_m1_dist",
    "efficientvit_mit": "efficientvit_b0 efficientvit_b1",
    "efficientvit_msra": "efficientvit_m0 efficientvit_m1",
    "eva": "eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb vit_pe_core_tiny_patch16_384 "
    "vit_small_patch16_rope_224 vit_small_patch16_rope_mixed_224 eva02_base_patch16_clip_224",
    "fasternet": "fasternet_t0 fasternet_t1",
    "fastvit": "fastvit_t8 fastvit_sa12",
    "focalnet": "focalnet_tiny_srf focalnet_tiny_lrf",
    "gcvit": "gcvit_xxtiny gcvit_xtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "hardcorenas": "hardcorenas_a hardcorenas_b",
    "hgnet": "hgnetv2_b0 hgnet_tiny",
    "hiera": "hiera_tiny_224 hiera_small_abswin_256",
    "hieradet_sam2": "sam2_hiera_tiny hieradet_small",
    "hrnet": "hrnet_w18_small hrnet_w18_ssld",
    "iformer": "iformer_t iformer_s",
    "inception_next": "inception_next_atto inception_next_tiny",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small lcnetv2_base",
    "levit": "levit_128s levit_conv_128s levit_384_s8",
    "lowformer": "lowformer_b0 lowformer_e1",
    "mambaout": "test_mambaout mambaout_femto",
    "maxxvit": "test_coatnet test_maxvit maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 coatnet_pico_rw_224 "
    "coatnet_nano_cc_224 coatnext_nano_rw_224 coatnet_rmlp_nano_rw_224 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 "
    "maxvit_tiny_tf_224 maxvit_tiny_pm_256",
    "metaformer": "poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18",
    "mlp_mixer": "gmlp_ti16_224 gmixer_12_224 resmlp_12_224 mixer_s32_224",
    "mobilenetv3": "mobilenetv3_small_050 mobilenetv3_large_100 tf_mobilenetv3_small_100 lcnet_035 fbnetv3_b "
    "mobilenetv3_rw mobilenetv4_conv_small mobilenetv4_hybrid_medium_075 mobilenetv4_conv_aa_medium",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "mvitv2": "mvitv2_tiny mvitv2_small_cls",
    "naflexvit": "naflexvit_base_patch16_gap naflexvit_base_patch16_map",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny nest_tiny_jx",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet nf_regnet_b0 nf_resnet26 nf_ecaresnet26 eca_nfnet_l0 nfnet_l0 dm_nfnet_f0",
    "pit": "pit_ti_224 pit_ti_distilled_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0 pvt_v2_b2_li",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002 regnety_002 regnetv_040 regnetz_005",
    "repghost": "repghostnet_050 repghostnet_058",
    "repvit": "repvit_m0_9 repvit_m1",
    "res2net": "res2next50 res2net50_14w_8s",
    "resnest": "resnest14d resnest26d",
    "resnet": "test_resnet resnet10t resnet14t resnet18d resnetblur18 seresnet18 resnetaa34d ecaresnet26t "
    "seresnext26t_32x4d resnet50_gn resnetrs50 resnext50_32x4d",
    "resnetv2": "resnetv2_18 resnetv2_50x1_bit resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42 selecsls60",
    "senet": "legacy_seresnet18 legacy_seresnext26_32x4d legacy_senet154",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1 shvit_s2",
    "sknet": "skresnet18 skresnext50_32x4d",
    "starnet": "starnet_s050 starnet_s100",
    "swiftformer": "swiftformer_xs swiftformer_s",
    "swin_transformer": "swin_tiny_patch4_window7_224 swin_s3_tiny_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256 swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224",
    "tiny_vit": "tiny_vit_5m_224 tiny_vit_11m_224",
    "tnt": "tnt_s_patch16_224 tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m tresnet_v2_l",
    "twins": "twins_svt_small twins_pcpvt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny visformer_small",
    "vision_transformer": "test_vit test_vit2 test_vit3 test_vit4 vit_tiny_patch16_224 vit_xsmall_patch16_clip_224 "
    "vit_wee_patch16_reg1_gap_256 vit_pwee_patch16_reg1_gap_256 vit_small_patch14_dinov2 flexivit_small "
    "vit_base_patch16_siglip_224 vit_small_patch16_18x2_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224 vit_small_r26_s32_224",
    "vision_transformer_relpos": "test_vit_relpos vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw vovnet39a eca_vovnet39b",
    "xception": "legacy_xception",
    "xception_aligned": "xception41 xception41p",
    "xcit": "xcit_nano_12_p8_224 xcit_nano_12_p16_224",
}
"""Module of timm → its smallest models, and those that differ from them in kind."""

TIMM_SKIPPED = {"deepseek_vit": "its smallest model has 412 million weights"}

TIMM_OPTIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "vit_small_patch14_dinov2": (("img_size", 224),),
    "vit_pe_core_tiny_patch16_384": (("img_size", 224),),
}
TIMM_SIZES = {"sam2_hiera_tiny": 256, "vit_small_patch14_dinov2": 224, "vit_pe_core_tiny_patch16_384": 224}
"""What `TIMM_OPTIONS` makes the input's size."""


def entries() -> list[Entry]:
    """The zoo: popular ones first, then by kind, large siblings last."""
    vision = list(_torchvision())
    known = {entry.name: entry for entry in (*vision, *_timm())}
    small = [name for name in known if name.startswith("timm/")]
    return [known[name] for name in dict.fromkeys([*POPULAR.split(), *small, *known])]


def _torchvision() -> Iterator[Entry]:
    zoo = torchvision.models
    for module in (zoo, zoo.segmentation, zoo.video):
        for name in zoo.list_models(module=module):
            if name in TORCHVISION_SKIPPED:
                continue
            family = zoo.get_model_builder(name).__module__.removeprefix("torchvision.models.")
            usual = (_CLIP,) if module is zoo.video else (SMALL, USUAL)
            shapes, options = TORCHVISION_INPUTS.get(name, (usual, ()))
            if module is zoo.segmentation:
                options = (*options, *_SEGMENT)
            yield Entry(f"torchvision/{name}", family, shapes, options)


def _timm() -> Iterator[Entry]:
    """The first model of each module, then the second ones, and so on."""
    columns = itertools.zip_longest(*(models.split() for models in TIMM.values()))
    for name, module in ((n, m) for row in columns for n, m in zip(row, TIMM, strict=True) if n):
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        full = TIMM_SIZES.get(name, config.input_size[-1])
        small = () if config.fixed_input_size or name in TIMM_SIZES else (SMALL, USUAL)
        shapes = tuple(dict.fromkeys(shape for shape in (*small, _flat(full)) if shape[-1] <= full))
        yield Entry(f"timm/{name}", module, shapes, TIMM_OPTIONS.get(name, ()))


class First(nn.Module):
    """The first output of a model that has several: of a dictionary "out", as torchvision's segmentation models say."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.model(x)
        while not isinstance(y, torch.Tensor):
            y = (y["out"] if "out" in y else next(iter(y.values()))) if isinstance(y, Mapping) else y[0]
        return y


def build(entry: Entry) -> tuple[nn.Module, torch.Tensor]:
    """The seeded model in eval mode, without gradients for its weights, and its two images."""
    torch.manual_seed(SEED)
    source, _, name = entry.name.partition("/")
    options = dict(entry.options)
    if source == "torchvision":
        model = torchvision.models.get_model(name, weights=None, **options)
    else:
        model = timm.create_model(name, pretrained=False, **options)
    model.eval().requires_grad_(False)
    liven(model)
    errors: list[str] = []
    for shape in entry.shapes:
        x = images(shape, 2, SEED)
        try:
            with torch.no_grad():
                y = model(x)
        except Exception as error:  # the model's own words about a size that does not suit it
            errors.append(f"{shape}: {type(error).__name__}: {error}")
            continue
        calibrate(model, [images(shape, 4, SEED + 1 + i) for i in range(2)])
        model = model if isinstance(y, torch.Tensor) else First(model).eval()
        with torch.no_grad():
            if not model(x).isfinite().all():
                revive(model)
        return model, x
    raise RuntimeError("; ".join(errors))


def images(shape: Sequence[int], count: int, seed: int) -> torch.Tensor:
    """Seeded images or clips, about standardised: coarse blobs with finer noise, as in `bench/models.py`."""
    generator = torch.Generator().manual_seed(seed)
    channels, *sizes = shape
    mode = "bicubic" if len(sizes) == 2 else "trilinear"
    total = torch.zeros(count, *shape)
    for cells, amplitude in ((6, 1.0), (24, 0.5), (max(sizes), 0.25)):
        coarse = torch.randn(count, channels, *(min(cells, size) for size in sizes), generator=generator)
        total += amplitude * nn.functional.interpolate(coarse, sizes, mode=mode)
    return total


def liven(model: nn.Module) -> None:
    """Draw anew what starts at zero or close to it, and the affine part of the norms, so that every part matters."""
    for name, p in model.named_parameters():
        if p.numel() < 1 or not p.is_floating_point() or (p != p.flatten()[0]).any():
            continue
        value = p.flatten()[0].item()
        if abs(value) < 0.2 and (value or p.numel() == 1 or "gamma" in name or "scale" in name):
            nn.init.uniform_(p, 0.1, 0.5)  # layer scales, skip gains
        elif value == 0 and p.ndim > 1:
            nn.init.normal_(p, 0.0, max(0.02, (p.shape[0] / p.numel()) ** 0.5))
        elif value == 0:
            nn.init.normal_(p, 0.0, 0.1)
        elif value == 1 and p.ndim == 1 and p.numel() > 1:
            nn.init.uniform_(p, 0.7, 1.3)


def calibrate(model: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Give every batch-norm a random affine part and statistics fitted to `batches`; see `bench/models.py`."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, 0.5, 1.0)
        if norm.bias is not None:
            nn.init.normal_(norm.bias, 1.0, 0.2)
        if norm.running_mean is not None:
            norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.no_grad():
        for batch in batches if norms else ():
            model(batch)
    model.eval()


def revive(model: nn.Module) -> None:
    """Keep variances away from zero: a unit behind a ReLU that was off in all batches explodes where it is on."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None:
            norm.running_var.clamp_(min=0.05 * norm.running_var.mean().item())


SKIPPED = {**{f"torchvision/{name}": why for name, why in TORCHVISION_SKIPPED.items()}, **TIMM_SKIPPED}
"""Models that are left out, and why."""
