"""Prints rows for docs/results/elevater.csv from a result folder of `dcclip eval --out`.

    python benchmarks/eval/result_rows.py FOLDER --model starter --weights fp32 --machine fast >> elevater.csv

`lowest` and `highest` are a 95 % interval of 1,000 bootstrap samples of the images, as in `dcclip
compare`. `ties` is the percentage of answers that a tie between classes decides, `most frequent
answer` that of the class that is answered most often. With --teacher, `share of the teacher` is
the percentage of the teacher's metric.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from dcclip_cli.eval import registry
from dcclip_cli.eval.compare import bootstrap_interval
from dcclip_cli.eval.result import METRIC_NAMES, load_results

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("folder", type=Path)
parser.add_argument("--model", required=True, help="the model's name in the table")
parser.add_argument("--weights", required=True, help="fp32 or int8")
parser.add_argument("--teacher", type=Path, help="result folder of the teacher, on the same images")
parser.add_argument("--seed", default="")
parser.add_argument("--machine", required=True, help="class of `dcclip doctor`")
arguments = parser.parse_args()
teacher_results = load_results(arguments.teacher) if arguments.teacher else []
teacher_values = {(result.dataset, result.limit): result.value for result in teacher_results}
writer = csv.writer(sys.stdout, lineterminator="\n")
for result in load_results(arguments.folder):
    lowest, highest = bootstrap_interval(result)
    metric = METRIC_NAMES[result.metric]
    values = {
        metric: result.value,
        f"{metric}, lowest": lowest,
        f"{metric}, highest": highest,
        "ties": result.lost,
    }
    values["most frequent answer"] = np.bincount(result.detail("predictions")).max() / result.n
    if teacher_value := teacher_values.get((result.dataset, result.limit)):
        values["share of the teacher"] = result.value / teacher_value
    dataset, command = (
        registry.base_name(result.dataset),
        "dcclip eval --model MODEL --dataset NAME --data-root DATA",
    )
    if result.limit:
        dataset, command = (
            f"{dataset}, sample of {result.limit:,}",
            f"{command} --limit {result.limit}",
        )
    command += " after python benchmarks/eval/test_sets.py DATA NAME=CLONE"
    model = f"{arguments.model}, seed {arguments.seed}" if arguments.seed else arguments.model
    for name, value in values.items():
        identity = (model, arguments.weights, dataset, result.split, result.language, name)
        writer.writerow(
            (
                *identity,
                f"{100 * value:.1f}",
                "%",
                arguments.seed,
                arguments.machine,
                result.date,
                command,
            )
        )
