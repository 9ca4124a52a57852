defmodule Barytherium.Connection.Deadline do
  @moduledoc false
  # A time-out that several steps share.

  @type t :: :infinity | integer()

  @spec in_ms(timeout()) :: t()
  def in_ms(:infinity), do: :infinity
  def in_ms(timeout), do: System.monotonic_time(:millisecond) + timeout

  @doc "The milliseconds that are left."
  @spec left(t()) :: timeout()
  def left(:infinity), do: :infinity
  def left(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)
end
