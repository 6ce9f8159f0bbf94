/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GARRISON_DECIDE_H
#define GARRISON_DECIDE_H

/* Answer operations on standard input; returns the exit status. See decide.c for the form. */
int decide_main(void);

#endif
