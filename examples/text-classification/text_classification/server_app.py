"""The server: it sends the adapter out, combines what comes back, and keeps the result."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from fedsd.strategies import LoRAStrategy
from text_classification import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run config asks for."""
    model = task.build_model(task.RANK)
    strategy = LoRAStrategy(rule="flexlora", peft_config=task.lora_config(task.RANK).to_dict(), ask_ranks=True)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    if context.run_config["out"]:
        save_file(result.arrays.to_torch_state_dict(), str(context.run_config["out"]))
