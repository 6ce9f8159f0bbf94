/* SPDX-License-Identifier: GPL-2.0-only */
/* Figures of the enforcement programs. Python reads them by the same numbers (garrison.minion.enforcers.bpf_lsm.events). */
#ifndef GARRISON_FIGURES_H
#define GARRISON_FIGURES_H

enum counter { COUNT_DECISIONS, COUNT_BLOCKS, COUNT_AUDITS, COUNT_LOST, COUNT_UNNAMED, COUNT_UNRESOLVED, COUNT_TABLE, COUNT_WALKS, COUNT_SUPPRESSED, COUNTERS };

#include "counters.h"

#endif
