defmodule Barytherium.Secret do
  @moduledoc false
  # A term that no log, no state and no report shows. It is data, unlike a function that returns the term: so
  # it is still good after its module was replaced in a running system.

  @enforce_keys [:value]
  defstruct [:value]

  @type t(value) :: %__MODULE__{value: value}
  @type t :: t(term())

  @spec new(value) :: t(value) when value: term()
  def new(value), do: %__MODULE__{value: value}

  @spec reveal(t(value)) :: value when value: term()
  def reveal(%__MODULE__{value: value}), do: value

  defimpl Inspect do
    def inspect(_secret, _opts), do: "#Barytherium.Secret<...>"
  end
end
