"""What a node does: train the adapter on its own sentences, and measure the one that it is sent."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from text_classification import task

app = ClientApp()


def rank_of(context: Context) -> int:
    """The rank that this node can afford."""
    ranks = [int(rank) for rank in str(context.run_config["ranks"]).split(",")]
    return ranks[int(context.node_config["partition-id"]) % len(ranks)]


def load(message: Message, context: Context) -> PeftModel:
    """The model at this node's rank, with the adapter that the server sent."""
    model = task.build_model(rank_of(context))
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    return model


@app.query("lora")
def lora(message: Message, context: Context) -> Message:
    """Say at which rank this node trains; the server asks once."""
    return Message(RecordDict({"lora": MetricRecord({"rank": rank_of(context)})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on sentences of three of the four topics, which differ from node to node."""
    node, server_round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
    steps, lr = int(context.run_config["local-steps"]), float(context.run_config["learning-rate"])
    topics = [topic for topic in range(len(task.TOPICS)) if topic != node % len(task.TOPICS)]
    ids, labels = task.sentences(400 + 100 * node, seed=node, topics=topics)
    model = load(message, context)
    loss = task.train(model, ids, labels, steps, lr, seed=100 * server_round + node)
    content = {
        "arrays": ArrayRecord(get_peft_model_state_dict(model)),
        "metrics": MetricRecord({"train-loss": loss, "num-examples": len(ids)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure on sentences of all topics that no node trains on."""
    node = int(context.node_config["partition-id"])
    ids, labels = task.sentences(400, seed=1000 + node)
    found = {"accuracy": task.accuracy(load(message, context), ids, labels), "num-examples": len(ids)}
    return Message(RecordDict({"metrics": MetricRecord(found)}), reply_to=message)
