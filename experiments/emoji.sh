#!/usr/bin/env bash
# Train the emoji model and its fast form, in stages that resume if the script is run again:
#
#     pfgmpp data emoji
#     bash experiments/emoji.sh [FOLDER]
#
# 1. An autoencoder of 64² pixels into 16² latents of four channels, for VAE_MINUTES.
# 2. One network for every D from 16 to infinity on its latents, for STEPS steps of 512 images. After more steps than
#    the 1,500 it copies its training data (RESULTS, "Drawing emoji").
# 3. The same network distilled for one and two calls, with guidance, for FAST_STEPS steps.
#
# Where the GPU or the processor has matrix units for bfloat16, PRECISION=bf16 and COMPILE=--compile make stages
# 2 and 3 faster.
set -euo pipefail

folder=${1:-outputs/emoji}
data=${DATA:-data/emoji}
launch="accelerate launch --mixed_precision ${PRECISION:-no} --num_processes 1 --num_machines 1 --dynamo_backend no"

python experiments/emoji_autoencoder.py "$data" "$folder/autoencoder" --minutes "${VAE_MINUTES:-55}"

$launch train_accelerate.py --dataset_name "$data" --class_conditional --balance_classes --label_dropout 0.1 \
    --validation_split validation --vae_model_name_or_path "$folder/autoencoder/vae" --preset emoji-small \
    --D 16:inf --d_conditioning --train_batch_size 512 --learning_rate 2e-3 --lr_scheduler inverse_sqrt \
    --lr_decay_images 1000000 --lr_warmup_images 100000 --max_train_steps "${STEPS:-1500}" \
    --checkpointing_steps 50 --sample_steps 250 ${COMPILE:-} --resume_from_checkpoint latest --save_dtype float16 \
    --output_dir "$folder/pfgmpp-emoji"

$launch train_accelerate.py --pretrained_model_name_or_path "$folder/pfgmpp-emoji" \
    --teacher_model_name_or_path "$folder/pfgmpp-emoji" --guidance_scale 5 --guidance_interval 0.05 8 \
    --dataset_name "$data" --balance_classes \
    --preset consistency-tuning --P_mean 0.5 --consistency_stages 7 \
    --max_train_steps "${FAST_STEPS:-1500}" --checkpointing_steps 200 --sample_steps 200 ${COMPILE:-} \
    --resume_from_checkpoint latest --save_dtype float16 --output_dir "$folder/pfgmpp-emoji-fast"
