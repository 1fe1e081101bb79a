#ifndef NOTHING
#define NOTHING 0
#endif

long sum(const long *values, int count)
{
	long all = NOTHING;

	for (int i = 0; i < count; i++)
		all += values[i];
	return all;
}
