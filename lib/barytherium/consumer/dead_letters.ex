defmodule Barytherium.Consumer.DeadLetters do
  @moduledoc false
  # Moves a message to another destination, where it waits for somebody who looks why it could not be handled.

  alias Barytherium.{Client, Error, Frame}
  alias Barytherium.Client.{Acknowledgements, Session, Transaction}

  # Headers that are of one delivery, and not of the message.
  @of_delivery ~w(subscription message-id ack destination redelivered content-length receipt transaction
                  x-delivery-count JMSXDeliveryCount expires)

  @doc "Sends a copy, and with a session acknowledges the message on its connection, both or neither."
  @spec move(pid(), Frame.t(), String.t(), nil | Session.t()) :: :ok | {:error, Error.t()}
  def move(client, message, destination, nil),
    do: Client.publish(client, destination, body(message), headers: headers(message))

  def move(client, message, destination, session) do
    result =
      Client.transaction(client, fn transaction ->
        with :ok <- acknowledge(transaction, message, session),
             :ok <- move(transaction, message, destination, nil),
             do: :ok,
             else: (error -> throw(error))
      end)

    with {:ok, :ok} <- result, do: :ok
  catch
    {:error, %Error{}} = error -> error
  end

  # This message and no other, on the connection that it came from.
  defp acknowledge(%{sender: sender} = transaction, message, %{sender: sender} = session) do
    case Acknowledgements.single(session, :ack, message, [Transaction.header(transaction)]) do
      nil -> {:error, Error.new(:unacknowledgeable)}
      frame -> written(Transaction.write(transaction, [frame]))
    end
  end

  defp acknowledge(_transaction, _message, _former), do: {:error, Error.new(:stale)}

  defp written({:error, reason}), do: {:error, Error.new(reason)}
  defp written(:ok), do: :ok

  defp headers(%Frame{headers: headers} = message) do
    inflated = if inflated?(message), do: ["content-encoding"], else: []
    kept = Enum.reject(headers, fn {name, _value} -> name in (@of_delivery ++ inflated) end)
    [{"original-destination", Frame.header(message, "destination", "")} | kept]
  end

  # The receive loop leaves the headers as they are: the length is that of the body as it was sent.
  defp inflated?(%{body: {:compressed, _body, _reason}}), do: false

  defp inflated?(%{body: body} = message) do
    Frame.header(message, "content-encoding") in ["gzip", "x-gzip", "deflate"] and
      Frame.header(message, "content-length") != to_string(byte_size(body))
  end

  defp body(%{body: {:compressed, body, _reason}}), do: body
  defp body(%{body: body}), do: body
end
