"""model.py and config.py alone in a course's harness: the loop of the course, on real files."""
import json
import shutil
import subprocess
import sys

from conftest import DATA, ROOT, needs_cifar10

HARNESS = '''
import json, sys, time
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from model import Model
from config import CONFIG

torch.manual_seed(int(sys.argv[2]))
train, test = (CIFAR10(sys.argv[1], train=t, transform=CONFIG.transforms) for t in (True, False))
train_loader = DataLoader(train, batch_size=CONFIG.batch_size, shuffle=True)
test_loader = DataLoader(test, batch_size=CONFIG.batch_size)
model = Model(num_channels=3, num_classes=10)
optimizer = CONFIG.optimizer_factory(model)
criterion = torch.nn.CrossEntropyLoss()
start = time.time()
for epoch in range(CONFIG.num_epochs):
    model.train()
    for images, labels in train_loader:
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = sum((model(x).argmax(1) == y).sum().item() for x, y in test_loader) / len(test)
    if accuracy > 0.55:
        break
print(json.dumps({"epochs": epoch + 1, "accuracy": accuracy, "seconds": time.time() - start}))
'''


@needs_cifar10
def test_two_files_alone_pass_in_one_or_two_epochs(tmp_path):
    for name in ("model.py", "config.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "main.py").write_text(HARNESS)
    result = subprocess.run([sys.executable, "main.py", str(DATA), "0"], cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["accuracy"] > 0.55
    assert outcome["epochs"] <= 2
