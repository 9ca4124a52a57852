defmodule Barytherium.Untyped do
  @moduledoc """
  Arguments that are wrong on purpose. Elixir 1.20 sees them when it compiles, and warns.
  """

  @doc "`value`, in a way that the compiler cannot follow."
  def untyped(value), do: value |> :erlang.term_to_binary() |> :erlang.binary_to_term()
end
