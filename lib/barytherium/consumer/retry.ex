defmodule Barytherium.Consumer.Retry do
  @moduledoc false
  # How often a message is given to a callback that raises, and what becomes of it then: the options `:max_attempts`,
  # `:retry_delay` and `:on_exhausted` of a consumer.
  #
  # The attempts are made here, one after the other, because brokers count few deliveries: RabbitMQ those of quorum
  # queues. What it has counted before is added.

  require Logger

  alias Barytherium.{Frame, Telemetry}
  alias Barytherium.Client.Session
  alias Barytherium.Consumer.Decisions

  # `move` is `Barytherium.Consumer.DeadLetters.move/4`.
  @enforce_keys [:max_attempts, :delay, :on_exhausted, :move]
  defstruct [:max_attempts, :delay, :on_exhausted, :move]

  @type t :: %__MODULE__{
          max_attempts: pos_integer(),
          delay: {non_neg_integer(), non_neg_integer()},
          on_exhausted:
            :nack | {:publish, String.t()} | (Frame.t(), term() -> :ack | :nack | :noreply)
        }

  # Milliseconds after which a wait looks whether the consumer is to stop, or the connection has ended.
  @slice 100

  # Headers with the number of deliveries before this one, or with that of this one.
  @before "x-delivery-count"
  @with_this "JMSXDeliveryCount"

  @spec new(map(), function()) :: nil | t()
  def new(%{max_attempts: :infinity}, _move), do: nil

  def new(options, move) do
    %__MODULE__{
      max_attempts: options.max_attempts,
      delay: options.retry_delay,
      on_exhausted: options.on_exhausted,
      move: move
    }
  end

  @doc "Attempts that the broker has counted, and that have come to nothing."
  @spec counted(Frame.t()) :: non_neg_integer()
  def counted(frame) do
    case {number(frame, @before), number(frame, @with_this)} do
      {nil, nil} -> 0
      {nil, count} -> max(count - 1, 0)
      {count, _other} -> count
    end
  end

  defp number(frame, name) do
    with text when is_binary(text) <- Frame.header(frame, name),
         {number, ""} when number >= 0 <- Integer.parse(text),
         do: number,
         else: (_none -> nil)
  end

  @doc "Whether none of these messages may be tried any more, after so many attempts here."
  @spec exhausted?(t(), [Frame.t()], non_neg_integer()) :: boolean()
  def exhausted?(%__MODULE__{max_attempts: most}, messages, attempts),
    do: Enum.all?(messages, &(counted(&1) + attempts >= most))

  @doc "Milliseconds before the next attempt, after so many."
  @spec delay(t(), pos_integer()) :: non_neg_integer()
  def delay(%__MODULE__{delay: {shortest, longest}}, attempts),
    do: min(shortest * 2 ** min(attempts - 1, 30), longest)

  @doc "Waits, unless `stop?` is true meanwhile."
  @spec wait(non_neg_integer(), (() -> boolean())) :: :ok
  def wait(0, _stop?), do: :ok

  def wait(left, stop?) do
    unless stop?.() do
      Process.sleep(min(left, @slice))
      wait(max(left - @slice, 0), stop?)
    end

    :ok
  end

  @doc """
  Decides on a message of which every attempt has failed. `:left`: nothing is decided, because that failed too. What was
  decided on earlier messages is written before.
  """
  @spec give_up(map(), Frame.t(), term()) :: map() | :left
  def give_up(%{retry: %{on_exhausted: what}} = handler, message, reason) do
    Telemetry.exhausted(handler, message)

    case what do
      :nack -> note(handler, {:nack, refusing(handler)}, message)
      {:publish, destination} -> move(Decisions.flush(handler), message, destination)
      function -> decide(handler, message, function, reason)
    end
  end

  defp note(handler, decision, message),
    do: %{handler | acks: Decisions.note(handler.acks, decision, message, handler)}

  # RabbitMQ would deliver it again.
  defp refusing(%{nack_headers: headers, session: session}) do
    if Session.requeues?(session) and not List.keymember?(headers, "requeue", 0),
      do: [{"requeue", "false"} | headers],
      else: headers
  end

  defp decide(handler, message, function, reason) do
    case function.(message, reason) do
      command when command in [:ack, :nack, :noreply] -> note(handler, command, message)
    end
  catch
    kind, reason ->
      what = if is_exception(reason), do: inspect(reason.__struct__), else: kind
      Logger.error("Barytherium: on_exhausted of #{inspect(handler.module)} failed (#{what})")
      :left
  end

  # The copy is there when the message is gone, and not before, where the broker can do that.
  defp move(%{client: client, session: session} = handler, message, destination) do
    how =
      cond do
        Decisions.mode(handler, message) == :auto -> :publish
        session.shared? or not Session.acknowledges_in_transactions?(session) -> :publish_first
        true -> :transaction
      end

    case handler.retry.move.(client, message, destination, how == :transaction) do
      :ok when how == :publish_first ->
        note(handler, :ack, message)

      :ok ->
        handler

      {:error, error} ->
        text = Exception.message(error)
        Logger.error("Barytherium: #{inspect(handler.module)} cannot move a message: #{text}")
        :left
    end
  end
end
