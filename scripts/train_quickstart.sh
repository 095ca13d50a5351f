#!/usr/bin/env bash
# Training from nothing: prepares captioned shapes, trains a two-stage cascade, samples captions that it has never seen,
# and measures how well they are drawn. Interrupt it at any time: the same command continues.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""

data=datasets/shapes_single
run=runs/quickstart

python scripts/prepare_data.py --shapes single --output "$data" --num-train 12000 --num-validation 500 --num-test 500
python scripts/embed_text.py --preset quickstart --data.path "$data"

# The stages know nothing of each other while they train. On CPUs they train side by side, which small
# steps use better than several cores for each; an accelerator is left to one program at a time.
if [ "$(python -c 'import jax; print(jax.default_backend())')" = cpu ]; then
    log=$run/sr64.log
    mkdir -p "$run"
    echo "Training sr64 beside base; its progress goes to $log."
    python scripts/train.py --preset quickstart --stage sr64 --workdir "$run" > "$log" 2>&1 &
    sr64=$!
    # However base ends, sr64 does not go on unseen: it is told to stop, and leaves its checkpoint.
    trap 'kill -TERM "$sr64" 2> /dev/null && wait "$sr64" || true' EXIT
    python scripts/train.py --preset quickstart --stage base --workdir "$run"
    wait "$sr64" || { tail -n 3 "$log" >&2; exit 1; }
    trap - EXIT
else
    python scripts/train.py --preset quickstart --stage base --workdir "$run"
    python scripts/train.py --preset quickstart --stage sr64 --workdir "$run"
fi
python scripts/evaluate.py --workdir "$run" --data "$data" --num 200

cat <<END

Look at $run/evaluation/grid.png. What next (in the environment: . ${VIRTUAL_ENV#"$PWD"/}/bin/activate):
  python scripts/sample.py --workdir $run --prompts "a large red ring on a black background" "a purple triangle" --num 4
  python scripts/prepare_data.py --input FOLDER --output datasets/mine     # your own captioned pictures
  python scripts/prepare_data.py --shapes full --output datasets/shapes --num-train 40000  # whole scenes, on a GPU:
  python scripts/train.py --preset shapes --stage base --workdir runs/shapes
END
