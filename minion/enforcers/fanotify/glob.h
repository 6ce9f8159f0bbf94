/* SPDX-License-Identifier: Apache-2.0 */
/* Runs one compiled glob over a path. */
#ifndef GARRISON_GLOB_H
#define GARRISON_GLOB_H

#include "table.h"

/* Whether the whole of text matches. Time is at most words of the program times bytes of the text; nothing is allocated. */
bool glob_run(struct table *t, const struct glob *g, const char *text, uint32_t len);

/* Returns the words that the instruction at word takes, 0 when it is not one or does not fit into left words. */
uint32_t glob_instruction_words(uint32_t word, uint32_t left);

#endif
