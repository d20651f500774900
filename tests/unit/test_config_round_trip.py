"""Any config survives its file, and gives the same bytes again."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stm.config import (
    CLASS_TOKENS,
    DTYPES,
    MODES,
    WEIGHTS,
    Config,
    FileInfo,
    Measured,
    ModelConfig,
    Preprocess,
    Protection,
    Source,
)
from stm.config_file import dumps, loads
from stm.merging.schedule import Schedule, Step
from stm.recipe import CUTS, ORDERS, PRESET_NAMES, SIDES, Calibration, Fit, Recipe, Tried

counts = st.integers(1, 9)
words = st.text(max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
intervals = st.tuples(shares, shares)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | words,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3),
)


@st.composite
def schedules(draw: st.DrawFn, model: ModelConfig) -> Schedule:
    tokens, cls, steps = model.tokens, model.cls, []
    for after in range(model.depth - 1):
        patches = [position for position in range(tokens) if position != cls]
        if len(patches) < 2 or draw(st.booleans()):
            continue
        sources = draw(st.sets(st.sampled_from(patches), min_size=1, max_size=len(patches) - 1))
        into = st.sampled_from([position for position in patches if position not in sources])
        steps.append(Step(after, tuple((source, draw(into)) for source in sorted(sources))))
        cls -= sum(source < cls for source in sources)
        tokens -= len(sources)
    return Schedule(model.tokens, model.cls, tuple(steps))


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    patch, stride = draw(counts), draw(counts)
    return ModelConfig(
        image_size=patch + stride * draw(st.integers(0, 3)) + draw(st.integers(0, stride - 1)),
        patch=patch,
        stride=stride,
        in_chans=draw(st.sampled_from([1, 3])),
        d_model=draw(counts),
        depth=draw(counts),
        d_state=draw(counts),
        dt_rank=draw(counts),
        expand=draw(counts),
        d_conv=draw(counts),
        class_token=draw(st.sampled_from(CLASS_TOKENS)),
        divide_out=draw(st.booleans()),
        norm_eps=draw(st.floats(1e-12, 1)),
    )


@st.composite
def preprocessings(draw: st.DrawFn, model: ModelConfig) -> Preprocess:
    channels = st.tuples(*[st.floats(0.01, 1)] * model.in_chans)
    return Preprocess(
        resize=model.image_size + draw(st.integers(0, 40)),
        crop=model.image_size,
        interpolation=draw(st.sampled_from(["bicubic", "bilinear", "nearest", "none"])),
        mean=draw(channels),
        std=draw(channels),
    )


protections = st.builds(
    Protection,
    weights=st.sampled_from([rule for rule in WEIGHTS if rule != "hsp"]),
    step_scale=st.floats(0, 4),
    span_conv=st.booleans(),
) | st.builds(
    Protection,
    weights=st.just("hsp"),
    mode=st.sampled_from(MODES),
    normalized=st.booleans(),
    step_scale=st.floats(0, 4),
)


fits = st.builds(
    Fit,
    data=words,
    n=counts,
    judges=st.integers(0, 9),
    seed=st.integers(0, 2**64),
    sha256=words,
    cut=st.sampled_from(CUTS),
    tried=st.lists(
        st.builds(Tried, cut=st.sampled_from(CUTS), step_scale=st.floats(0, 4), kl=st.floats(0, 99)), max_size=2
    ).map(tuple),
    max_drop=st.none() | shares,
    speedup=st.none() | st.floats(1, 9),
)


@st.composite
def recipes(draw: st.DrawFn, removed_share: float) -> Recipe:
    order = draw(st.sampled_from(ORDERS))
    budgets = {"rate": shares, "saving": shares, "stages": st.lists(counts, max_size=3).map(tuple)}
    asked = draw(st.sampled_from(sorted(budgets)))
    return Recipe(
        method=draw(st.sampled_from(PRESET_NAMES)),
        **{asked: draw(budgets[asked])},
        removed_share=removed_share,
        schedule=order,
        sides=draw(st.sampled_from(SIDES)),
        tokens_per_side=None if order in ("fitted", "staged") else draw(st.none() | counts),
        calibration=draw(st.none() | st.builds(Calibration, data=words, n=counts, sha256=words)),
        fit=draw(st.none() | fits) if order == "fitted" else None,
        seed=draw(st.integers(0, 2**64)),
    )


measured = st.builds(
    Measured,
    data=words,
    n=counts,
    failed=counts,
    top1=st.none() | shares,
    top1_ci=st.none() | intervals,
    top5=st.none() | shares,
    drop_ci=st.none() | intervals,
    kl=st.none() | st.floats(0, allow_infinity=False),
    mcnemar_p=st.none() | shares,
    reasons=st.dictionaries(words, words, max_size=2),
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    model = draw(models())
    classes = draw(st.integers(1, 4))
    schedule = draw(schedules(model))
    names = st.none() | words
    return Config(
        model=model,
        num_classes=classes,
        schedule=schedule,
        preprocessing=draw(preprocessings(model)),
        label_names=draw(st.none() | st.tuples(*[words] * classes)),
        dtype=draw(st.sampled_from(DTYPES)),
        protection=draw(protections),
        recipe=draw(st.none() | recipes(schedule.removed_share)),
        source=draw(
            st.builds(
                Source, repo=names, file=st.none() | st.just("vim.pth"), revision=names, sha256=names, license=names
            )
        ),
        measured=tuple(draw(st.lists(measured, max_size=2))),
        files=draw(st.dictionaries(words, st.builds(FileInfo, sha256=words, bytes=st.integers(0)), max_size=2)),
        stm_version=draw(words),
        extra=draw(st.dictionaries(words, json_values, max_size=2)),
    )


@settings(max_examples=40)
@given(configs())
def test_a_config_survives_its_file(config: Config) -> None:
    text = dumps(config)
    again = loads(text)
    assert again == config
    assert dumps(again) == text
    assert hash(again.model) == hash(config.model), "tuples are tuples again"
