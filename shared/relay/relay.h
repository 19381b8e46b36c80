/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RELAY_H
#define RELAY_H

#include <stdint.h>
#include "relay_api.h"

#endif
