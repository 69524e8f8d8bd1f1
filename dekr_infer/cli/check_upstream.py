"""Run upstream's code and ours over the same images, stage by stage, and print the largest differences.

Stages before the network compare tensors; with --checkpoint its maps are compared too (upstream in torch, ours as the
exported graph), and both decoders are then given upstream's maps. Without one they are given noisy maps drawn from the
annotations. Ends with exit code 1 when a tolerance is exceeded.

  python3 scripts/check_upstream.py --root data/coco --limit 50 --rescore models/final_rescore_coco_kpt.pth
"""

from __future__ import annotations

from argparse import REMAINDER
from pathlib import Path

from dekr_infer.cli.app import Arguments, Parser, add_category, cores, positive_int, run, worker_count
from dekr_infer.cli.data_set import data_set_of
from dekr_infer.cli.progress import progress
from dekr_infer.config.load import load_config
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.upstream_comparison import TOLERANCES, Comparison, Differences
from dekr_infer.model.upstream import upstream_config, use_checkout
from dekr_infer.storage.atomic import write_json


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--upstream", type=Path, default=Path("DEKR"), help="patched checkout")
    parser.add_argument("--root", type=Path, required=True, help="data set in COCO's layout")
    parser.add_argument("--cfg", default="dekr_w32_coco", help="the network's configuration")
    parser.add_argument("--checkpoint", type=Path, help="compare the network's maps, and decode those")
    parser.add_argument("--rescore", type=Path, help="compare rescored scores with this checkpoint")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    add_category(parser)
    parser.add_argument("pairs", nargs=REMAINDER, metavar="KEY VALUE", help="settings, e.g. TEST.SCALE_FACTOR 0.5,1,2")
    args = parser.parse_args(argv)

    def work() -> None:
        use_checkout(args.upstream)
        pairs = ["DATASET.ROOT", str(args.root)]
        pairs += ["RESCORE.MODEL_FILE", str(args.rescore)] if args.rescore else ["RESCORE.VALID", "False"]
        config = load_config(args.cfg, pairs + args.pairs)
        whole = data_set_of(config, args.category)
        data = whole.first(args.limit)
        comparison = Comparison(config, upstream_config(args.upstream, None, pairs), args.checkpoint, args.threads)
        differences = Differences()
        with progress("compare", len(data.images)) as advance:
            for image in data.images:
                comparison.compare(image, data, differences)
                advance(1)
        comparison.compare_results(whole, differences)
        print(f"largest differences between upstream and ours over {len(data.images)} images")
        print(differences.table())
        if args.json:
            write_json(args.json, {"pictures": len(data.images), "stages": differences.rows()}, indent=2)
        exceeded = [stage for stage in differences.largest if not differences.holds(stage)]
        if exceeded:
            raise DekrError(f"tolerance exceeded: {', '.join(exceeded)}")
        unseen = [stage for stage in TOLERANCES if stage not in differences.largest]
        if unseen:
            print(f"not compared: {', '.join(unseen)}; these need --checkpoint or --rescore")

    return run(work)
