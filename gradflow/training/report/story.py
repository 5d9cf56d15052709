"""The sentences of a report: on the data and the training, and what a reader must know before the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from gradflow import optim
from gradflow.data.splits import LIMIT
from gradflow.training.epoch import best_of
from gradflow.training.report.data import ReportData
from gradflow.training.report.markup import LEVEL, NONE, TIMES, count, duration, listed, name, number, percent, text
from gradflow.training.report.numbers import Figure

_ACTIVATIONS = {
    "relu": "ReLU", "gelu": "GELU", "gelu_exact": "exact GELU", "silu": "SiLU", "elu": "ELU", "selu": "SELU",
    "mish": "Mish"
}  # fmt: skip
_OPTIMIZERS = {name.lower(): name for name in optim.__all__}


def lead(data: ReportData, figures: Sequence[Figure]) -> str:
    """Return the run and its main figure in one or two sentences."""
    members = len(data.histories)
    what, s = (
        (f"An ensemble of {members} multilayer perceptrons", "") if members > 1 else ("A multilayer perceptron", "s")
    )
    dataset = f"<strong>{name(data.dataset)}</strong>"
    if data.classes:
        task = f"tell{s} {count(len(data.classes), 'class')} of {dataset} apart"
    else:
        values = "a value" if data.sizes[-1] == 1 else f"{data.sizes[-1]} values"
        task = f"predict{s} {values} of {dataset} from {_features(data)}"
    if not figures or data.targets is None:
        return f"{what} that {task}."
    main, n = figures[0], len(data.targets)
    show = percent if main.percent else lambda v: number(v, like=(main.value, main.high - main.low))
    scored = "is right for {} of" if data.classes else "reaches an R² of {} on"
    if main.low < main.high:
        interval = f" ({LEVEL} interval: {show(main.low)} to {show(main.high)})"
    else:  # none is wrong, or all are: the note on the figures says what that tells
        interval = ""
    unseen = ", which it never saw before" if data.assessed == "test" else ""
    score = scored.format(f"<strong>{show(main.value)}</strong>")
    return f"{what} that {task}. It {score} {count(n, f'{data.assessed} sample')}{unseen}{interval}."


def notices(data: ReportData, finite: bool) -> Iterator[str]:
    """Yield what a reader must know before the figures. finite: whether the outputs are."""
    if data.stopped:
        done = listed([str(len(history)) for history in data.histories] or ["0"])
        yield _notice(
            "Training ended early", f", after {done} of {text(data.settings['epochs'])} epochs: {text(data.stopped)}."
        )
    if data.outputs is None or not len(data.outputs):
        yield _notice("No samples were held out", ", so nothing tells how the model does on samples it has not seen.")
    elif not finite:
        yield _notice("There are no figures", ", because the weights that were kept predict NaN or infinity.")
    elif data.assessed == "validation":
        yield _notice(
            "There is no test set.",
            " The figures are those of the validation samples, which chose the "
            "epoch that is kept, so they are somewhat too good.",
        )


def story(data: ReportData) -> str:
    """Return three paragraphs: on the data, the model and the training."""
    return "".join(f"<p>{' '.join(part)}</p>" for part in (_the_data(data), _the_model(data), _the_training(data)))


def _notice(strong: str, rest: str) -> str:
    return f'<p class="notice"><strong>{strong}</strong>{rest}</p>'


def _features(data: ReportData) -> str:
    """Return the number of features, or of the columns of a table that are used."""
    return count(data.sizes[0], "feature") if data.table is None else count(len(data.features), "column")


def _the_data(data: ReportData) -> Iterator[str]:
    train, validation, test = data.counts
    if data.image_shape is None:
        inputs = _features(data)
    else:
        height, width, *channels = data.image_shape
        inputs = f"{height}{TIMES}{width} pixels{f' in {channels[0]} channels' if channels else ''}"
    kind = count(len(data.classes), "class") if data.classes else count(data.sizes[-1], "target value")
    samples = count(sum(data.counts), "sample")
    yield f"The data are <strong>{name(data.dataset)}</strong>: {samples} of {inputs}, with {kind}."
    parts = [f"{train:,} trained the model"]
    if validation:
        parts.append(f"{validation:,} validated it after each epoch and chose the epoch that is kept")
    if test:
        parts.append(f"{test:,} {'was' if test == 1 else 'were'} set aside and used for nothing but this report")
    yield f"{listed(parts)}." if len(parts) > 1 else "All of them trained the model."
    if data.table is not None:
        yield f"The task: {name(data.table.task)}."
        yield "How columns become inputs was learned from the training rows alone."
        return
    yield "Inputs are standardized by the mean and the standard deviation of the training samples,"
    yield f"and clipped at {LIMIT:g} standard deviations: beyond them, predictions do not change."


def _the_model(data: ReportData) -> Iterator[str]:
    settings, members = data.settings, len(data.histories)
    hidden = len(data.sizes) > 2
    averaged = "probabilities" if data.classes else "predictions"
    subject = (
        f"The model is an ensemble of {members} whose {averaged} are averaged; each member"
        if members > 1
        else ("The model")
    )
    kind = (
        f"multilayer perceptron with layers of {NONE.join(map(str, data.sizes))} units"
        if hidden
        else (f"linear model of {data.sizes[0]} inputs and {count(data.sizes[-1], 'output')}")
    )
    before, total = "", sum((n + 1) * m for n, m in pairwise(data.sizes))
    if data.table is not None:
        before, total = f"The columns become {data.sizes[0]} features, each by itself. ", data.table.parameters
    parameters = count(total, "parameter")
    activation = str(settings.get("activation", ""))
    activated = f", {text(_ACTIVATIONS.get(activation, activation))} between them" if activation and hidden else ""
    yield f"{before}{subject} is a {kind}{activated}, and has {parameters}."
    if settings.get("dropout") and hidden:
        yield f"In training, {percent(settings['dropout'])} of the hidden values are dropped."


def _the_training(data: ReportData) -> Iterator[str]:
    settings = data.settings
    optimizer = str(settings["optimizer"])
    falls = {
        "cosine": ", which falls to 0 along half a cosine,",
        "plateau": ", which is halved after 5 epochs without a better loss,",
    }.get(str(settings.get("schedule")), "")
    options = [f"a learning rate of {settings['lr']:g}{falls}"]
    options += [f"momentum {settings['momentum']:g}"] if settings.get("momentum") else []
    options += [f"weight decay {settings['weight_decay']:g}"] if settings.get("weight_decay") else []
    loss = "cross-entropy" if data.classes else "mean squared error"
    yield f"{text(_OPTIMIZERS.get(optimizer, optimizer))} with {listed(options)} minimized the {loss}"
    yield f"in batches of {settings['batch_size']}."
    if (settings.get("accumulate") or 1) > 1:
        yield f"Each update adds up the gradients of {settings['accumulate']} batches."
    if settings.get("clip_norm"):
        yield f"Gradients are clipped to a norm of {settings['clip_norm']:g}."
    if settings.get("average"):
        yield f"The weights are an exponential moving average with decay {settings['average']:g}."
    if settings.get("class_weight"):
        yield "Rare classes count more: each class is weighted by the inverse of its frequency."
    if settings.get("weight_column"):
        weights = name(settings["weight_column"])
        yield f"Rows count by their weights in {weights} in training and validation, and equally in the figures."
    if settings.get("autocast"):
        half = text(settings["autocast"])
        yield f"Training was in mixed precision: layers ran in {half}; losses, sums and the optimizer in float32."
        yield "The test figures are computed in float32."
        skipped = sum(epoch.skipped for history in data.histories for epoch in history)
        if skipped:
            yield f"{count(skipped, 'step')} changed nothing, because gradients overflowed."
    if settings.get("patience"):
        yield f"It was to end after {count(settings['patience'], 'epoch')} without a better one."
    done = [len(history) for history in data.histories]
    if done:
        epochs = count(done[0], "epoch") if len(set(done)) == 1 else f"{listed([str(n) for n in done])} epochs"
        yield f"Training took {duration(data.seconds)} for {epochs}{' of each member' if len(done) > 1 else ''}."
    best = [str(epoch.epoch) for history in data.histories if (epoch := best_of(history)) is not None]
    if best:
        monitored = text(settings.get("monitor") or "loss").replace("_", " ")
        on = "validation" if data.counts[1] else "training"
        which = f"epoch {best[0]}" if len(best) == 1 else f"each member's best epoch ({listed(best)})"
        yield f"Kept are the weights of {which}, judged by the {monitored} on the {on} samples."
