"""A report on keypoint results, how good, where not, and why: one self-contained HTML file, and its numbers as JSON.

The HTML needs no network and no server. Jinja renders it from `templates/` and escapes everything: names in results and
annotations are not trusted.
"""

from __future__ import annotations

import base64
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from dekr_infer.data.coco import DataSet, ImageEntry, PersonEntry
from dekr_infer.data.sources import ImageFiles
from dekr_infer.errors import DekrError, excerpt, one_line
from dekr_infer.evaluation.coco_metrics import average_precision, coco_evaluation, coco_metrics
from dekr_infer.evaluation.error_analysis import JOINT_ERRORS, PERSON_ERRORS, Errors, ap_if_mended, find_errors
from dekr_infer.evaluation.metrics_file import TOLERANCE, leaves
from dekr_infer.evaluation.timing import latency_table
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import atomic_write, write_json
from dekr_infer.visualization.overlay import draw_poses

MOST_BYTES = 5_000_000  # of an HTML file
SHOWN = 12  # images of each kind: worst, random, moved most
LISTED = 100  # rows of a list; the JSON has all
LONGEST_NAME = 120  # characters of a name from a file
CAPTION_BYTES = 2000  # of a name, escaped, and the text with it, at most
TILE = Size(360, 480)  # pixels that each drawing of an image must fit into
JPEG_QUALITY = 75
LEAST_SCORE = 0.1  # of the people drawn
LEAST_JOINT_SCORE = 0.05
BINS = 20  # of score and of OKS
THRESHOLDS = (0.5, 0.75)  # OKS of the precision-recall curves
SIDES = (0, 32, 64, 96, 128, 192, 256)  # pixels: limits of the ranges of people's sizes, the root of their areas

Draw = Callable[[int], bytes]  # image id -> JPEG


def report_content(
    data: DataSet,
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    *,
    run: Mapping[str, Any],
    expected: float | None = None,
    tolerance: float = TOLERANCE,
    times: Mapping[int, Sequence[float]] | None = None,
    input_sizes: InputSizes = PUBLISHED_SIZES,
    skeleton: Skeleton = COCO_17,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every number and text of a report, as values of JSON.

    Args:
        data: the ground truth.
        results: entries of COCO's result file.
        image_ids: the images that count.
        run: content of metrics.json; empty where there is none.
        expected: AP of another source.
        tolerance: for `expected`, both ways.
        times: milliseconds of each image's passes, by image id.
        input_sizes: what the network was fed.
        skeleton: of the people.
        seed: of the random sample of images.
    Raises:
        DekrError: the data set has no annotations.
    """
    evaluated = set(image_ids)
    metrics = coco_metrics(data, results, image_ids)
    errors = find_errors(data, results, image_ids, skeleton)
    mended = ap_if_mended(data, results, image_ids, errors, skeleton)
    counts = errors.counts()
    losses = errors.losses(data, results)
    wrong = _what_went_wrong(data, results, errors, skeleton)
    images = {image.id: image for image in data.images if image.id in evaluated}
    worst = sorted(losses, key=lambda number: -losses[number])[:SHOWN]
    sample = [number for number in images if number not in worst]
    chosen = np.random.default_rng(seed).permutation(len(sample))[:SHOWN]
    annotated = Counter(person.image_id for person in data.ground_truth() if _counts(person))
    shown = {result["image_id"] for result in results}
    nobody = sorted((number for number in images if number not in shown), key=lambda number: -annotated[number])

    def about(number: int) -> dict[str, Any]:
        return image_entry(images[number]) | {"lost": losses.get(number, 0.0), "wrong": wrong.get(number, [])}

    kinds = [
        {"kind": kind, "meaning": meaning, "count": counts[kind], "ap": mended[kind]}
        | {"gain": mended[kind] - metrics["AP"] if mended[kind] >= 0 else None}
        for kind, meaning in (JOINT_ERRORS | PERSON_ERRORS).items()
    ]
    content = {
        "verdict": verdict(metrics["AP"], expected, tolerance),
        "counts": {
            "images": len(evaluated),
            "left_out": len(data.images) - len(evaluated),
            "annotated": sum(annotated[number] for number in evaluated),
            "found": len(errors.matches),
            "detections": len(results),
            "images_with_nobody_found": len(nobody),
        },
        "metrics": metrics,
        "kinds": kinds,
        "joints": errors.joint_counts(skeleton),
        "input_sizes": _by_input_size(data, results, images, annotated, input_sizes),
        **_curves(data, results, image_ids),
        "ranking": _ranking(results, errors),
        "latency": latency_table(times or {}, data, input_sizes),
        "seconds": dict(run.get("seconds") or {}),
        "weights": run.get("weights"),
        "settings": flat(run.get("settings")),
        "versions": flat(run.get("versions")),
        "sha256": flat(run.get("sha256")),
        "warnings": [str(text) for _, text in flat(run.get("warnings"))],
        "worst": [about(number) for number in worst],
        "random": [about(sample[place]) for place in chosen],
        "nobody": [image_entry(images[number]) | {"annotated": annotated[number]} for number in nobody],
    }
    return content | {"why": _why(content)}


def verdict(ap: float, expected: float | None, tolerance: float) -> dict[str, Any]:
    """Return an AP beside the expected one; the state is `as expected`, `not as expected` or `no expectation`."""
    if expected is None:
        state = "no expectation"
    else:
        state = "as expected" if abs(ap - expected) <= tolerance else "not as expected"
    return {"AP": ap, "expected": expected, "tolerance": tolerance, "state": state}


def image_entry(image: ImageEntry) -> dict[str, Any]:
    """Return what names an image in a report."""
    return {"id": image.id, "file_name": image.file_name, "size": str(image.size)}


def flat(value: Any) -> list[tuple[str, Any]]:
    """Return the values in nested dictionaries by name; of a list, such as one value a pass, the different ones."""
    return [
        (name, ", ".join(dict.fromkeys(map(str, leaf))) if isinstance(leaf, list) else leaf)
        for name, leaf in leaves(value)
    ]


def _counts(person: PersonEntry) -> bool:
    return not person.iscrowd and bool(person.num_keypoints)


def _by_input_size(
    data: DataSet,
    results: Sequence[Mapping[str, Any]],
    images: Mapping[int, ImageEntry],
    annotated: Mapping[int, int],
    input_sizes: InputSizes,
) -> list[dict[str, Any]]:
    ids: dict[str, list[int]] = defaultdict(list)
    for image in images.values():
        ids[str(input_sizes.place(image.size).input)].append(image.id)
    rows = []
    for size, numbers in ids.items():
        own = set(numbers)
        ap = average_precision(data, [result for result in results if result["image_id"] in own], numbers)
        people = sum(annotated.get(number, 0) for number in numbers)
        rows.append({"size": size, "images": len(numbers), "people": people, "AP": ap})
    return sorted(rows, key=lambda row: -row["images"])


def _curves(data: DataSet, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]) -> dict[str, Any]:
    """Return AP by the size of people, and precision by recall."""
    limits = [*SIDES, 1e5]
    ranges = {
        f"{low} to {high} px" if high < 1e5 else f"{low} px and more": (low**2, high**2)
        for low, high in itertools.pairwise(limits)
    }
    evaluation = coco_evaluation(data, results, image_ids, ranges)
    precision, evaluated = evaluation.eval["precision"], set(image_ids)
    areas = [person.area for person in data.ground_truth() if _counts(person) and person.image_id in evaluated]
    sizes = []
    for (label, (low, high)), values in zip(ranges.items(), precision[:, :, 0, 1:, 0].transpose(2, 0, 1), strict=True):
        people = sum(low <= area < high for area in areas)
        known = values[values > -1]
        sizes.append({"size": label, "people": people, "AP": float(known.mean()) if people and known.size else -1.0})
    steps = {float(step): index for index, step in enumerate(evaluation.params.iouThrs.round(2))}
    curves = {str(oks): precision[steps[oks], :, 0, 0, 0].tolist() for oks in THRESHOLDS}
    return {"person_sizes": sizes, "precision": curves, "recall": evaluation.params.recThrs.tolist()}


def _ranking(results: Sequence[Mapping[str, Any]], errors: Errors) -> dict[str, Any]:
    """Return how the scores of the detections agree with their OKS.

    Returns:
        spearman: the correlation of their ranks; scores: the range; density: detections by OKS (rows, from 0) and score
        (columns, from the least); mean_oks: of each column, `None` where it is empty.
    """
    if not errors.nearest:
        return {"detections": 0, "spearman": None, "scores": [0.0, 1.0], "density": [], "mean_oks": []}
    oks = np.array(list(errors.nearest.values()))
    scores = np.array([float(results[index]["score"]) for index in errors.nearest])
    low, high = float(scores.min()), float(scores.max())
    columns = np.minimum(((scores - low) / max(high - low, 1e-12) * BINS).astype(int), BINS - 1)
    rows = np.minimum((oks * BINS).astype(int), BINS - 1)
    density = np.zeros((BINS, BINS), int)
    np.add.at(density, (rows, columns), 1)
    means = [float(oks[columns == column].mean()) if (columns == column).any() else None for column in range(BINS)]
    varied = np.ptp(scores) > 0 and np.ptp(oks) > 0
    spearman = float(np.corrcoef(_ranks(scores), _ranks(oks))[0, 1]) if varied else None
    return {"detections": len(oks), "spearman": spearman, "scores": [low, high]} | {
        "density": density.tolist(),
        "mean_oks": means,
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, equal values sharing their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _what_went_wrong(
    data: DataSet, results: Sequence[Mapping[str, Any]], errors: Errors, skeleton: Skeleton
) -> dict[int, list[str]]:
    """Return the errors of each image in words."""
    wrong: dict[int, list[str]] = defaultdict(list)
    image_of = {person.id: person.image_id for person in data.ground_truth()}
    for number, count in Counter(image_of[person] for person in errors.missed).items():
        wrong[number].append(f"{count} of the annotated people not found")
    for match in sorted(errors.matches, key=lambda match: match.oks):
        kinds: dict[str, list[str]] = defaultdict(list)
        for name, kind in zip(skeleton.joints, match.joints, strict=True):
            if kind not in (None, "good"):
                kinds[str(kind)].append(name.replace("_", " "))
        parts = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items()]
        if match.better is not None:
            parts.append("a better detection scores less")
        if parts:
            wrong[match.image_id].append(f"person with OKS {match.oks:.2f}; {'; '.join(parts)}")
    for indices, text in ((errors.duplicates, "duplicates"), (errors.background, "detections of nobody")):
        scores: dict[int, list[float]] = defaultdict(list)
        for index in indices:
            scores[results[index]["image_id"]].append(results[index]["score"])
        for number, values in scores.items():
            wrong[number].append(f"{len(values)} {text}, the best scores {max(values):.2f}")
    return wrong


def _why(content: Mapping[str, Any]) -> list[str]:
    """Return why AP is what it is, in sentences."""
    metrics, counts = content["metrics"], content["counts"]
    if not counts["annotated"]:
        return ["Nobody is annotated in these images, so there is no AP."]
    sentences = [
        f"{counts['found']} of {counts['annotated']} annotated people have a detection near them. AP is "
        f"{metrics['AP .5']:.3f} where OKS 0.5 is enough, {metrics['AP .75']:.3f} at 0.75, and {metrics['AP']:.3f} "
        "over all ten thresholds from 0.5 to 0.95."
    ]
    gains = sorted(
        (kind for kind in content["kinds"] if kind["gain"] is not None and kind["gain"] > 5e-4),
        key=lambda kind: -kind["gain"],
    )
    if not gains:
        return [*sentences, "No single kind of error costs AP."]
    listed = [
        f"{kind['kind']} ({'the order' if kind['kind'] == 'score' else kind['count']}): {kind['gain']:+.3f}, to "
        f"{kind['ap']:.3f}"
        for kind in gains
    ]
    sentences.append(f"What separates AP from 1, by what mending one kind alone would add: {'; '.join(listed)}.")
    shares = {
        name: 1 - joint["good"] / sum(joint.values())
        for name, joint in content["joints"].items()
        if sum(joint.values())
    }
    lowest = sorted(shares, key=lambda name: -shares[name])[:4]
    named = ", ".join(f"{name.replace('_', ' ')} {shares[name]:.0%}" for name in lowest)
    sentences.append(f"The joints that are most often not on their place: {named}.")
    return sentences


def people_of(entries: Iterable[Mapping[str, Any]], least: float, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray]:
    """Return poses (people, J, 3) and scores (people,) of the entries that score at least so much."""
    kept = [entry for entry in entries if entry.get("score", 1.0) >= least]
    poses = np.array([entry["keypoints"] for entry in kept], np.float32).reshape(-1, len(skeleton), 3)
    return poses, np.array([entry.get("score", 1.0) for entry in kept], np.float32)


def drawer(data: DataSet, files: ImageFiles, *runs: Sequence[Mapping[str, Any]], skeleton: Skeleton = COCO_17) -> Draw:
    """Return a function that draws an image as a small JPEG: the annotated people, then those of each run beside them.

    Args:
        data: the ground truth.
        files: the images.
        runs: entries of COCO's result file, of one run or of several.
        skeleton: of the people.
    """
    images = {image.id: image for image in data.images}
    columns: list[dict[int, list[Mapping[str, Any]]]] = [defaultdict(list) for _ in range(1 + len(runs))]
    for person in data.ground_truth():
        if _counts(person):
            columns[0][person.image_id].append({"keypoints": person.keypoints})
    for column, results in zip(columns[1:], runs, strict=True):
        for result in results:
            column[result["image_id"]].append(result)

    def draw(number: int) -> bytes:
        pixels = files.decode(images[number])[:, :, ::-1]
        scale = min(TILE.h / pixels.shape[0], TILE.w / pixels.shape[1])
        h, w = (max(1, round(side * scale)) for side in pixels.shape[:2])
        small = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        tiles = []
        for column in columns:
            poses, scores = people_of(column[number], LEAST_SCORE, skeleton)
            placed = poses * (w / pixels.shape[1], h / pixels.shape[0], 1)
            is_truth = column is columns[0]
            threshold = 0 if is_truth else LEAST_JOINT_SCORE
            shown = None if is_truth else scores
            tiles.append(draw_poses(small, placed, shown, joint_threshold=threshold, skeleton=skeleton))
        side_by_side = np.concatenate(tiles, axis=1)
        done, encoded = cv2.imencode(".jpg", side_by_side[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
        assert done
        return encoded.tobytes()

    return draw


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = lambda value: one_line(excerpt(value, LONGEST_NAME))
    environment.filters["number"] = lambda value: "-" if value is None or value == -1 else f"{value:.3f}"
    environment.filters["signed"] = lambda value: "-" if value is None else f"{value:+.3f}"
    return environment


def write_report(
    path: Path,
    content: Mapping[str, Any],
    *,
    title: str,
    draw: Draw | None,
    template: str = "report.html",
    most_bytes: int = MOST_BYTES,
) -> None:
    """Write a report, and its numbers beside it as JSON.

    Args:
        path: of the HTML file, FILE.html; the JSON is FILE.json.
        content: values of JSON; the entries of `worst`, `random` and `moved` are images.
        title: of the page.
        draw: draws an image; `None` where the images are not there.
        template: file in `templates/`.
        most_bytes: of the HTML file; images that do not fit are left out.
    Raises:
        DekrError: a file cannot be written.
    """
    pictures: dict[int, str] = {}
    notes: dict[int, str] = {}

    def render() -> bytes:
        page = _templates().get_template(template)
        values = {
            "pictures": pictures,
            "notes": notes,
            "listed": LISTED,
            "shown": SHOWN,
            "title": title,
            "has_images": draw is not None,
        }
        return page.render(content, **values).encode("utf-8", "backslashreplace")

    kinds = ("worst", "random", "moved") if draw is not None else ()
    drawn = [entry["id"] for kind in kinds for entry in content.get(kind, ())[:SHOWN]]
    left = most_bytes - len(render()) - len(drawn) * CAPTION_BYTES
    for number in drawn:
        assert draw is not None
        try:
            picture = "data:image/jpeg;base64," + base64.b64encode(draw(number)).decode()
        except DekrError as error:
            notes[number] = one_line(excerpt(error, LONGEST_NAME))
            continue
        if len(picture) <= left:
            pictures[number] = picture
            left -= len(picture)
        else:
            notes[number] = "left out, to keep this file small"
    with atomic_write(path) as temporary:
        temporary.write_bytes(render())
    write_json(path.with_suffix(".json"), {"title": title, **content}, indent=1)
