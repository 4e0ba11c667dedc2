"""Figures about the stories that a model writes, which say more than its loss: `judge.judge_stories`."""
