defmodule Barytherium.Tail.Report do
  @moduledoc false
  # Sentences about what happens and what came.

  @doc "How many messages and bytes came, and how fast."
  @spec counts(non_neg_integer(), non_neg_integer(), milliseconds :: pos_integer()) :: String.t()
  def counts(messages, bytes, milliseconds) do
    seconds = :erlang.float_to_binary(milliseconds / 1000, decimals: 1)

    "#{plural(messages, "message")}, #{bytes(bytes)} of bodies in #{seconds} s " <>
      "(#{rate(messages, bytes, milliseconds)})"
  end

  @spec rate(non_neg_integer(), non_neg_integer(), milliseconds :: pos_integer()) :: String.t()
  def rate(messages, bytes, milliseconds) do
    a_second = &round(&1 * 1000 / milliseconds)
    "#{plural(a_second.(messages), "message")}/s, #{bytes(a_second.(bytes))}/s"
  end

  @doc "A number and what it counts."
  @spec plural(non_neg_integer(), String.t()) :: String.t()
  def plural(1, what), do: "1 #{what}"
  def plural(count, what), do: "#{number(count)} #{what}s"

  defp bytes(count) when count < 1_000, do: "#{count} B"
  defp bytes(count) when count < 1_000_000, do: decimal(count / 1_000) <> " kB"
  defp bytes(count) when count < 1_000_000_000, do: decimal(count / 1_000_000) <> " MB"
  defp bytes(count), do: decimal(count / 1_000_000_000) <> " GB"

  defp decimal(value), do: :erlang.float_to_binary(value, decimals: 1)

  @doc "With commas between groups of three digits."
  @spec number(non_neg_integer()) :: String.t()
  def number(count),
    do: count |> to_string() |> String.replace(~r/(?<=\d)(?=(\d{3})+\z)/, ",")
end
