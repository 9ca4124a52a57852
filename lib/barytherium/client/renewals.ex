defmodule Barytherium.Client.Renewals do
  @moduledoc false
  # Subscriptions on a new connection. All of them are written at once. But a broker that refuses one may not
  # say which (RabbitMQ), and the connection ends. Those that were not confirmed then are suspects: on the next
  # connection they come after the others, one at a time. The one that is refused is left out, and tried again
  # with a back-off of its own, so that it does not take the others with it each time. The functions run in the
  # client, and take its data.

  alias Barytherium.Client.{Backoff, Events, Requests, Session, State, Writing}
  alias Barytherium.Frame

  # Milliseconds that the receipt for a renewed subscription may take.
  @timeout 10_000

  # Milliseconds before a refused subscription is tried again.
  @pauses {1_000, 300_000}

  @doc "Writes the subscriptions of a new connection."
  @spec write([State.subscription()], State.t()) :: State.t()
  def write(entries, data) do
    {suspects, others} = entries |> Enum.reject(& &1[:refused]) |> Enum.split_with(& &1[:suspect])
    suspects = for %{subscription: %{number: number}} <- suspects, do: number
    next(Enum.reduce(others, put_in(data.connection.suspects, suspects), &write_one/2))
  end

  defp write_one(%{subscription: subscription}, data),
    do: Writing.subscribe(subscription, {:renewal, subscription}, @timeout, data)

  # The next suspect, when nothing else is waited for.
  defp next(%{connection: %{suspects: [number | suspects], verdict: nil}} = data) do
    if any?(data) do
      data
    else
      data = put_in(data.connection.suspects, suspects)

      case data.subscriptions do
        %{^number => %{ending: false} = entry} -> write_one(entry, data)
        _ended -> next(data)
      end
    end
  end

  defp next(data), do: data

  @doc "Whether subscriptions of the connection have not been confirmed yet."
  @spec any?(State.t()) :: boolean()
  def any?(data), do: count(data) > 0

  defp count(data),
    do: Requests.count(data.requests, &match?({{:renewal, _subscription}, _timer}, &1))

  @doc "The broker's answer, or that there is none."
  @spec answer(Session.subscription(), :ok | {:error, atom() | Frame.t(), list()}, State.t()) ::
          State.t()
  def answer(%{number: number}, :ok, data),
    do: next(update(number, data, &Map.drop(&1, [:suspect, :pauses])))

  # A refusal that names it, or that can be about no other.
  def answer(%{number: number} = subscription, {:error, %Frame{} = frame, _left}, data) do
    if names?(frame) or (count(data) == 0 and data.subscriptions[number][:suspect] == true),
      do: next(refuse(subscription, frame, data)),
      else: update(number, data, &Map.put(&1, :suspect, true))
  end

  def answer(%{number: number}, {:error, :unconfirmed, _left}, data),
    do: update(number, data, &Map.put(&1, :suspect, true))

  # A subscription that is not answered must not be missing silently.
  def answer(%{number: number} = subscription, {:error, reason, _left}, data) do
    Events.not_renewed(subscription, reason, data)
    Writing.hang_up(reason, update(number, data, &Map.put(&1, :suspect, true)))
  end

  defp names?(%Frame{headers: headers}), do: List.keymember?(headers, "receipt-id", 0)

  defp refuse(%{number: number} = subscription, frame, data) do
    Events.not_renewed(subscription, frame, data)
    data = Writing.withdraw(subscription, data)

    update(number, data, fn entry ->
      {wait, pauses} = entry |> Map.get(:pauses, Backoff.new(@pauses)) |> Backoff.next()
      Process.send_after(self(), {:resubscribe, number}, wait)
      Map.merge(entry, %{refused: true, suspect: true, pauses: pauses})
    end)
  end

  @doc "It is time to try a refused subscription again."
  @spec again(pos_integer(), atom(), State.t()) :: State.t()
  def again(number, state, data) do
    data = update(number, data, &Map.delete(&1, :refused))

    if state == :connected,
      do: next(update_in(data.connection.suspects, &(&1 ++ [number]))),
      else: data
  end

  defp update(number, data, change) do
    if is_map_key(data.subscriptions, number),
      do: update_in(data.subscriptions[number], change),
      else: data
  end
end
