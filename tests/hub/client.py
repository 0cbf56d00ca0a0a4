"""What Python's huggingface_hub does with the stand-in Hub; `clients.rs` calls it."""

import json
import sys

from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

task, *rest = sys.argv[1:]
api = HfApi()
if task == "whoami":
    print(api.whoami()["name"])
elif task == "snapshot":
    print(snapshot_download(rest[1], repo_type=rest[0]))
elif task == "file":
    print(hf_hub_download(rest[0], rest[1]))
elif task == "upload":
    api.create_repo(rest[0], private=True, exist_ok=True)
    api.upload_folder(repo_id=rest[0], folder_path=rest[1], ignore_patterns=[".*", "*.part"])
elif task == "card":
    card = ModelCard.load(rest[0])
    data = card.data
    results = [[r.metric_type, r.metric_value, r.dataset_type] for r in data.eval_results or []]
    print(json.dumps({**data.to_dict(), "eval": results, "text": card.text}))
else:
    sys.exit(f"unknown task {task}")
