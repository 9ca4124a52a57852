defmodule Bench.Processor do
  @moduledoc "What this VM costs. For the benchmarks, and for the demo."

  @doc """
  Seconds of the processor that this VM has used: all threads, in the kernel too. `:erlang.statistics(:runtime)` is
  without the kernel, where a receiver spends half of its time, and serves only where there is no `/proc`. The
  resolution is 10 ms.
  """
  def time do
    case File.read("/proc/self/stat") do
      {:ok, stat} ->
        [_name, fields] = String.split(stat, ") ")
        fields = String.split(fields)
        [user, system] = for at <- [11, 12], do: fields |> Enum.at(at) |> String.to_integer()
        (user + system) / 100

      {:error, _no_proc} ->
        elem(:erlang.statistics(:runtime), 0) / 1_000
    end
  end
end
