#!/usr/bin/env bash
# Makes tests/fixtures/schema-2: a small run with every measurement by the last program that wrote schema 2.
set -euo pipefail
cd "$(dirname "$0")/../.."

commit=40af5ad
source="$(mktemp -d)"
trap 'git worktree remove --force "$source"' EXIT
git worktree add --detach "$source" "$commit"
cp tests/fixtures/corpus.txt "$source/tests/fixtures/"
fixture="$PWD/tests/fixtures/schema-2"
cd "$source"
cargo run --release --locked -- run all --out "$source/run" \
    --set model.source=tests/fixtures/tiny-llama --set corpus.source=tests/fixtures/corpus.txt \
    --set corpus.tokens=96 --set corpus.prompt_len=8 --set analysis.top_fraction=0.1 \
    --set 'ablation.kinds=["resample", "zero"]' --set 'ablation.heads=["L0H1", "L1"]' \
    --set 'ablation.mlps=["L1"]' --set 'ablation.attention=["L2"]' --set 'ablation.blocks=["L0"]' \
    --set 'ablation.hold=["erasers"]' --set ablation.distribution=true \
    --set neurons.layers=all --set iterative.prompts=2 --set 'iterative.multiples=[0.1, 3.0]'

rm -rf "$fixture"
mkdir -p "$fixture/report"
cp -r "$source/run/tables" "$source/run/stages" "$source/run/.self-repair-run" "$fixture/"
cp "$source/run/report/config.toml" "$fixture/report/"
