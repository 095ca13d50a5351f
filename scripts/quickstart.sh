#!/usr/bin/env bash
# Draws pictures with a pretrained cascade that comes with the package.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""

out=samples/quickstart
begin=$SECONDS
imagen-jax sample --pretrained shapes --output "$out" --prompts \
    "a red star on a white background" "a large cyan ring" "a yellow heart on black" "a purple triangle" \
    "a small green circle on brown" "a huge orange cross" "a pink square on grey" "a blue ring on white" \
    "a cyan triangle on black" "a large pink circle on grey" "two green circles" "three pink squares" \
    "two blue hearts" "three orange crosses on white" "a cyan heart right of an orange circle" \
    "a large green disk and a large yellow heart on black"
echo "16 pictures in $((SECONDS - begin)) s, with loading and compiling: look at $out/grid.png"

cat <<END

What next (in the environment: . ${VIRTUAL_ENV#"$PWD"/}/bin/activate):
  imagen-jax sample --pretrained shapes --prompts "a red star above a blue ring" --num 4    # prompts of your own
  imagen-jax sample --pretrained shapes --prompts "a red star" --image $out/a-large-cyan-ring-seed0.png --strength 0.8
  bash scripts/train_quickstart.sh                # train a cascade from nothing
  imagen-jax prepare --input FOLDER --output datasets/mine     # captioned pictures of your own to train on: see README.md
END
