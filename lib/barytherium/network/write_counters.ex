defmodule Barytherium.Network.WriteCounters do
  @moduledoc false
  # What a connection has written and has still to write. Whoever has the reference can read it, without a
  # call to the sender.

  @type t :: :counters.counters_ref()

  # Indexes of the counters.
  @written_frames 1
  @waiting_bytes 2

  @spec new() :: t()
  def new, do: :counters.new(2, [])

  @doc "`{frames written, bytes waiting}`."
  @spec read(t()) :: {non_neg_integer(), non_neg_integer()}
  def read(counters),
    do: {:counters.get(counters, @written_frames), :counters.get(counters, @waiting_bytes)}

  @spec add_written(t(), non_neg_integer()) :: :ok
  def add_written(counters, frames), do: :counters.add(counters, @written_frames, frames)

  @spec put_waiting(t(), non_neg_integer()) :: :ok
  def put_waiting(counters, bytes), do: :counters.put(counters, @waiting_bytes, bytes)
end
