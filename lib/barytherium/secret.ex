defmodule Barytherium.Secret do
  @moduledoc false
  # A term that no log, no state and no report shows. It is inside a function, because Erlang's formats, unlike
  # `Inspect`, show all of a struct. The function is one of this module, which hardly changes: a function of the
  # module that uses it would be of no use after that module was replaced twice in a running system.

  @enforce_keys [:value]
  defstruct [:value]

  @type t(value) :: %__MODULE__{value: (() -> value)}
  @type t :: t(term())

  @spec new(value) :: t(value) when value: term()
  def new(value), do: %__MODULE__{value: fn -> value end}

  @spec reveal(t(value)) :: value when value: term()
  def reveal(%__MODULE__{value: value}), do: value.()

  @doc "What the `format_status` of a process reports, without the messages that it got."
  @spec without_messages(map()) :: map()
  def without_messages(status),
    do: status |> Map.replace(:message, "...") |> Map.replace(:log, [])

  defimpl Inspect do
    def inspect(_secret, _opts), do: "#Barytherium.Secret<...>"
  end
end
