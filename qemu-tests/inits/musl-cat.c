/* Shows a file. */
#include <stdio.h>

int main(int argc, char **argv)
{
	FILE *f = fopen(argc == 2 ? argv[1] : "", "r");
	if (!f) {
		perror("musl-cat");
		return 1;
	}
	for (int c; (c = getc(f)) != EOF;)
		putchar(c);
	return 0;
}
