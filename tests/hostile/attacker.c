/* attacker DIRECTORY MICROSECONDS A B [A B ...]
 *
 * Exchanges a path of the directory with another one, holds that for a while, and exchanges them back: again and again,
 * one pair after the other by chance, until it is killed.  A pause is anything up to MICROSECONDS, short ones more often.
 * Prints a line when it begins, and another one with the number of exchanges when it is told to end (SIGTERM). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t ended;

static void end(int number)
{
	(void)number;
	ended = 1;
}

static int exchange(const char *a, const char *b)
{
	return renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE);
}

static void rest(long most)
{
	long microseconds = random() % most >> random() % 12;
	struct timespec pause = {0, microseconds * 1000};

	nanosleep(&pause, NULL);
}

int main(int argc, char **argv)
{
	long most = argc > 2 ? atol(argv[2]) : 0, made = 0;

	if (argc < 5 || argc % 2 == 0 || most < 1 || chdir(argv[1])) {
		perror("attacker DIRECTORY MICROSECONDS A B [A B ...]");
		return 2;
	}
	signal(SIGTERM, end);
	srandom(getpid());
	puts("begun");
	fflush(stdout);
	while (!ended) {
		char **pair = argv + 3 + random() % ((argc - 3) / 2) * 2;

		if (exchange(pair[0], pair[1])) {
			/* what the program removed or has not made yet is no reason to end */
			if (errno != ENOENT && errno != ENOTDIR) {
				perror(pair[0]);
				return 1;
			}
			rest(most);
			continue;
		}
		made++;
		rest(most);
		/* the path above may be exchanged itself by now: then this one waits for its next turn */
		exchange(pair[0], pair[1]);
		rest(most);
	}
	printf("%ld exchanges\n", made);
	return 0;
}
