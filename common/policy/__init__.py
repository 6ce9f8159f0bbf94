"""KubeArmor's policy language: models, normalisation to a RuleSet, selection, matching, compile report. Pure."""
