"""A checkpoint that fits nothing stops the run."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_mm.checkpoint import bare_model, check_keys
from kd_mm.registry import HOOKS


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuse a loaded checkpoint of which no weight is one of the model's.

    MMEngine warns and goes on with random weights. Our tools add this hook to each run.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names before they are loaded.

        Args:
            runner: The runner that loads.
            checkpoint: What the file held.

        Raises:
            ValueError: If no name fits.
        """
        model = bare_model(runner.model)
        weights = checkpoint.get('state_dict', checkpoint)
        source = runner._load_from or 'the checkpoint'
        check_keys([name.removeprefix('module.') for name in weights], model.state_dict(), source)
