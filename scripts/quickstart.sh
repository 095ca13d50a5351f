#!/usr/bin/env bash
# Draws pictures in several styles with the pretrained cascades that come with the package.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""

out=samples/quickstart
begin=$SECONDS
imagen-jax sample --pretrained emoji --output "$out" --prompts \
    "a tiger, noto style" "a tiger, fluent flat style" "a red apple, fluent style" "a rocket, noto style" \
    "a snowman, noto v1 style" "a rainbow, fxemoji style" "a birthday cake, noto style" "an octopus, fluent flat style" \
    --num 2
echo "16 pictures in $((SECONDS - begin)) s, programs compiled and language model loaded within them: $out/grid.png"

cat <<END

What next (in the environment: . ${VIRTUAL_ENV#"$PWD"/}/bin/activate):
  imagen-jax sample --pretrained emoji --prompts "a smiling cat, noto style" --num 4      # prompts of your own
  imagen-jax sample --pretrained shapes --prompts "a red star above a blue ring"          # relations and counts
  imagen-jax sample --pretrained emoji --start sr256 --low-res PICTURE.png --prompts "a dog, noto style"   # 64 -> 256
  bash scripts/train_quickstart.sh                                                        # train from nothing
END
