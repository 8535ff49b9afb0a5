"""Hide the GPUs before MMEngine, as it is imported, looks for them."""

import os

# Tests compare devices to the last bit, fork, and run two ranks on a machine with any number of
# GPUs. Those that need one run by themselves: KD_MM_TEST_GPU=1 pytest -n 0 -k on_a_gpu
if os.environ.get('KD_MM_TEST_GPU') != '1':
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
