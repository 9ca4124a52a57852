defmodule Barytherium.Client.Requests do
  @moduledoc false
  # Frames that were written and whose receipts have not arrived (STOMP 1.2, "RECEIPT"). A request is
  # one or more frames whose sender, `from`, waits for all of their receipts.

  alias Barytherium.Frame

  defstruct next: 1, open: %{}

  @type from :: term()
  @type request :: pos_integer()
  @type t :: %__MODULE__{
          next: request(),
          open: %{request() => {from(), MapSet.t(non_neg_integer())}}
        }

  @doc "Adds a request, with the number `next`. Returns its frames with `receipt` headers."
  @spec add(t(), from(), [Frame.t(), ...]) :: {[Frame.t()], t()}
  def add(%__MODULE__{next: number, open: open}, from, frames) do
    frames =
      for {%Frame{headers: headers} = frame, index} <- Enum.with_index(frames),
          do: %{frame | headers: headers ++ [{"receipt", "#{number}.#{index}"}]}

    left = MapSet.new(0..(length(frames) - 1))
    {frames, %__MODULE__{next: number + 1, open: Map.put(open, number, {from, left})}}
  end

  @doc "Notes a receipt. Returns the request when this was its last one."
  @spec confirm(t(), binary()) :: {:done, from(), t()} | {:open, t()}
  def confirm(%__MODULE__{open: open} = requests, receipt_id) do
    with {number, index} <- parse(receipt_id),
         %{^number => {from, left}} <- open do
      left = MapSet.delete(left, index)

      if MapSet.size(left) == 0,
        do: {:done, from, %{requests | open: Map.delete(open, number)}},
        else: {:open, %{requests | open: Map.put(open, number, {from, left})}}
    else
      _nobody_waits_for_it -> {:open, requests}
    end
  end

  @doc "The request that waits for this receipt, and the index of the frame."
  @spec find(t(), nil | binary()) :: nil | {request(), non_neg_integer()}
  def find(%__MODULE__{open: open}, receipt_id) do
    with {number, index} <- parse(receipt_id),
         %{^number => {_from, left}} <- open,
         true <- MapSet.member?(left, index) do
      {number, index}
    else
      _none -> nil
    end
  end

  @doc "Removes a request. Returns the indexes of its frames that were not confirmed."
  @spec take(t(), request()) :: {:ok, from(), [non_neg_integer()], t()} | :error
  def take(%__MODULE__{open: open} = requests, number) do
    case Map.pop(open, number) do
      {nil, _open} -> :error
      {{from, left}, open} -> {:ok, from, Enum.sort(left), %{requests | open: open}}
    end
  end

  @doc "Removes the requests of these senders, which have come to nothing."
  @spec forget(t(), [from()]) :: t()
  def forget(%__MODULE__{open: open} = requests, froms) do
    open = Map.reject(open, fn {_number, {{from, _timer}, _left}} -> from in froms end)
    %{requests | open: open}
  end

  @doc "Who waits for it."
  @spec from(t(), request()) :: nil | from()
  def from(%__MODULE__{open: open}, number) do
    with {{from, _timer}, _left} <- open[number], do: from
  end

  @spec numbers(t()) :: [request()]
  def numbers(%__MODULE__{open: open}), do: Map.keys(open)

  @doc "For how many of those who wait `wanted?` is true."
  @spec count(t(), (from() -> boolean())) :: non_neg_integer()
  def count(%__MODULE__{open: open}, wanted?),
    do: Enum.count(open, fn {_number, {from, _left}} -> wanted?.(from) end)

  @spec none?(t()) :: boolean()
  def none?(%__MODULE__{open: open}), do: open == %{}

  defp parse(receipt_id) when is_binary(receipt_id) do
    with {number, "." <> index} <- Integer.parse(receipt_id),
         {index, ""} <- Integer.parse(index),
         do: {number, index}
  end

  defp parse(nil), do: :error
end
