"""Is training more than a head worth it? Fine-tune the last stages and see what they won against the probe.

Adds: strategy partial, which starts from the probe and says what training changed, with an interval over groups.
Run:  python examples/06_train_the_last_stages.py photos/ runs/partial '(?P<group>[^/_]+)_[^/]*$'
"""

import sys

import unfreeze as uf


def main(
    source: str = "photos", folder: str = "runs/partial", pattern: str = r"(?P<group>[^/_]+)_[^/]*$", epochs: str = "6"
) -> None:
    recipe = uf.Recipe().replace(
        **{
            "strategy": "partial",
            "source.path": source,
            "source.group_regex": pattern,
            "train.epochs": int(epochs),
        }
    )
    run = uf.fit(uf.read(source, recipe.source), recipe, folder, force=True)

    scores = run.scores()
    for name, found in (("the probe", scores["components"]["probe"]), ("its last stages trained", scores)):
        f1 = found["macro_f1"]
        print(f"{name}: macro F1 {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f})")
    # Both predicted the same photos, so that the difference has a far narrower interval than either score.
    gain = scores["gain"]
    print(f"training changed it by {gain['value']:+.3f} (95%: {gain['low']:+.3f} to {gain['high']:+.3f})")

    print(uf.load(run).predict(source).head(3)[["path", "label"]].to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
