/** Whether a call failed because this process, or the machine, can open no more files (errno(3)). */
export const isExhausted = (error: unknown): boolean => {
  const { code } = (error ?? {}) as NodeJS.ErrnoException;
  return code === "EMFILE" || code === "ENFILE";
};
