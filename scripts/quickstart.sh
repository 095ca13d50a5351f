#!/usr/bin/env bash
# Draws pictures with the pretrained cascades that come with the package.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""

out=samples/quickstart
begin=$SECONDS
# Side by side, since compilation uses one core at a time.
imagen-jax sample --quiet --pretrained shapes --output "$out/shapes" --prompts \
    "a red star on a white background" "a large cyan ring" "a yellow heart on black" "a huge orange cross" \
    "two green circles" "three pink squares on grey" "a purple triangle left of a blue ring" \
    "a large green disk above a large yellow heart on black" &
shapes=$!
imagen-jax sample --pretrained emoji --output "$out/emoji" --prompts \
    "a cat face, noto style" "a rocket, fluent style" "a red apple, fluent flat style" "a panda, noto style" \
    "a clock, noto v1 style" "a guitar, fluent style" "a smiling face, noto style" "a frog, fluent flat style"
wait "$shapes"
echo "16 pictures in $((SECONDS - begin)) s, with loading and compiling: look at $out/emoji/grid.png and $out/shapes/grid.png"

cat <<END

What next (in the environment: . ${VIRTUAL_ENV#"$PWD"/}/bin/activate):
  imagen-jax sample --pretrained emoji --prompts "an owl, noto v1 style" "a key, fxemoji style" --num 4    # prompts of your own
  imagen-jax sample --pretrained shapes --prompts "a red star" --image $out/shapes/a-large-cyan-ring-seed0.png --strength 0.8
  bash scripts/train_quickstart.sh                # train a cascade from nothing
  imagen-jax prepare --input FOLDER --output datasets/mine     # captioned pictures of your own to train on: see README.md
END
